"""A stand-in for a serving runtime: `python replica.py NAME [PORT]` prints its port and serves.

`/health`; `/metrics` (never to be reached by callers); `POST /v1/…`, plain or as a stream that
sends its headers at once and the first token after `x-first-ms`, then one each `x-gap-ms`.
"""

import asyncio
import json
import signal
import sys

HEAD = "HTTP/1.1 {status} OK\r\ncontent-type: {kind}\r\nx-version: {name}\r\n"


async def answer(reader, writer, name):
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            lines = head.split("\r\n")
            headers = {
                key.strip().lower(): value.strip()
                for key, _, value in (line.partition(":") for line in lines[1:] if line)
            }
            body = b""
            if "content-length" in headers:
                body = await reader.readexactly(int(headers["content-length"]))
            elif "chunked" in headers.get("transfer-encoding", ""):
                while size := int(await reader.readline(), 16):
                    body += await reader.readexactly(size)
                    await reader.readline()
                await reader.readline()
            await reply(writer, name, lines[0].split()[1], headers, body)
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def reply(writer, name, path, headers, body):
    status = int(headers.get("x-status", 200))
    if not path.startswith("/v1/"):
        text = f"{name} {path}"
        writer.write(plain(status, name, "text/plain", text))
        return await writer.drain()
    asked = json.loads(body or b"{}")
    tokens = int(headers.get("x-tokens", 5))
    first, gap = (float(headers.get(key, 0)) / 1000 for key in ("x-first-ms", "x-gap-ms"))
    if not asked.get("stream"):
        await asyncio.sleep(first)
        value = {"version": name, "path": path, "usage": {"completion_tokens": tokens}}
        writer.write(plain(status, name, "application/json", json.dumps(value)))
        return await writer.drain()
    start = HEAD.format(status=status, kind="text/event-stream", name=name)
    writer.write((start + "transfer-encoding: chunked\r\n\r\n").encode())
    await writer.drain()
    await asyncio.sleep(first)
    for number in range(tokens):
        await event(writer, json.dumps({"choices": [{"delta": {"content": f"t{number} "}}]}))
        await asyncio.sleep(gap)
    await event(writer, json.dumps({"choices": [], "usage": {"completion_tokens": tokens}}))
    await event(writer, "[DONE]")
    writer.write(b"0\r\n\r\n")
    return await writer.drain()


async def event(writer, text):
    data = f"data: {text}\n\n".encode()
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
    await writer.drain()


def plain(status, name, kind, text):
    head = HEAD.format(status=status, kind=kind, name=name)
    return f"{head}content-length: {len(text)}\r\n\r\n{text}".encode()


async def main():
    name, port = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, sys.exit)
    server = await asyncio.start_server(lambda r, w: answer(r, w, name), "127.0.0.1", port)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
