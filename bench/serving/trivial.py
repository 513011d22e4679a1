"""A server that does nothing but stream, a token each so many ms: what the client itself takes of the machine. Run as
a program, it prints its port."""

from __future__ import annotations

import asyncio
import json

PIECE = {"id": "x", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": " word"}}]}
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """max_tokens events, each written on its own, `pause` seconds apart."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    body = json.loads(await reader.readexactly(length))
    event = chunk(b"data: " + json.dumps(PIECE).encode() + b"\n\n")
    writer.write(HEAD)
    for _ in range(body["max_tokens"]):
        writer.write(event)
        await asyncio.sleep(body["pause"])
    writer.write(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
    writer.close()


async def main() -> None:
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
