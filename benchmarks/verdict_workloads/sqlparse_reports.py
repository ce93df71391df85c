"""SQL statements laid out with sqlparse."""

import sqlparse


def tidy_queries_input(n: int = 200) -> list[str]:
    return [
        "select a.id,sum(b.amount) as total,count(*) from orders a join lines b on a.id=b.order_id where "
        f"a.day>'2024-01-{i % 28 + 1:02}' and b.article in (select id from articles where kind={i % 7}) "
        f"group by a.id having sum(b.amount)>{i} order by total desc"
        for i in range(n)
    ]


def tidy_queries(queries: list[str]) -> list[str]:
    return [sqlparse.format(query, reindent=True, keyword_case="upper") for query in queries]
