"""Orders read as objects by SQLAlchemy out of a database in memory."""

from sqlalchemy import ForeignKey, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, selectinload
from sqlalchemy.pool import StaticPool


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    customer: Mapped[str]
    lines: Mapped[list["Line"]] = relationship()


class Line(Base):
    __tablename__ = "lines"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey("orders.id"))
    amount: Mapped[int]


def order_totals_input(n: int = 4000):
    """An engine on a database with n orders of three lines."""
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})  # for all threads
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all(
            Order(customer=f"c{i % 101}", lines=[Line(amount=i % 13), Line(amount=i % 7), Line(amount=1)]) for i in range(n)
        )
        session.commit()
    return engine


def order_totals(engine) -> dict[str, int]:
    totals: dict[str, int] = {}
    with Session(engine) as session:
        for order in session.scalars(select(Order).options(selectinload(Order.lines))):
            totals[order.customer] = totals.get(order.customer, 0) + sum(line.amount for line in order.lines)
    return totals
