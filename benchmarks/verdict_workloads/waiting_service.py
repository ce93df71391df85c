"""A service that asks another one, over a socket, and waits for it."""

import asyncio
import json


def waiting_service_input(n: int = 12) -> list[list[str]]:
    """n requests, each with the articles whose price it wants."""
    return [[f"article {i * j % 17}" for j in range(1, 6)] for i in range(1, n + 1)]


async def waiting_service(requests: list[list[str]]) -> list[int]:
    server = await asyncio.start_server(_price_service, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        return [await order_value(articles, port) for articles in requests]


async def order_value(articles: list[str], port: int) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(json.dumps(articles).encode() + b"\n")
    prices = json.loads(await reader.readline())
    writer.close()
    await writer.wait_closed()
    return sum(prices)


async def _price_service(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Another machine's service, which takes 50 ms for an answer."""
    articles = json.loads(await reader.readline())
    await asyncio.sleep(0.05)
    writer.write(json.dumps([len(article) for article in articles]).encode() + b"\n")
    await writer.drain()
    writer.close()
