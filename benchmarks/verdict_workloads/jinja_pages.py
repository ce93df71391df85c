"""A price list rendered with Jinja."""

from jinja2 import Environment

PAGE = Environment(autoescape=True).from_string(
    """<table>{% for article in articles %}
<tr class="{{ loop.cycle('odd', 'even') }}"><td>{{ article.name | title }}</td><td>{{ '%.2f' | format(article.price) }}</td>
<td>{% if article.stock %}{{ article.stock }}{% else %}sold out{% endif %}</td></tr>{% endfor %}
</table>"""
)


def price_list_input(n: int = 50_000) -> list[dict]:
    return [{"name": f"article <{i}>", "price": i % 997 / 10, "stock": i % 5} for i in range(n)]


def price_list(articles: list[dict]) -> str:
    return PAGE.render(articles=articles)
