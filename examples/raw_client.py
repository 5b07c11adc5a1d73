"""A client of Tandem in plain pyzmq and msgpack, for any language to copy: docs/protocol.md.

python examples/raw_client.py tcp://127.0.0.1:7301 "def add(a, b):"
"""

import sys
import uuid

import msgpack
import zmq

MAGIC = b"TDM\x01"  # the protocol's version is the last byte


def send(socket: zmq.Socket, message: dict, *binary: bytes) -> None:
    """A binary field holds the number of its frame after the control frame."""
    socket.send_multipart([MAGIC, msgpack.packb(message), *binary])


def generate(address: str, prompt: str, max_tokens: int = 40) -> str:
    """Stream an answer to standard output; return it whole."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.set(zmq.LINGER, 1000)
        socket.set(zmq.RCVTIMEO, 30_000)
        socket.connect(address)
        params = {"max_tokens": max_tokens, "temperature": 0.0}
        submit = {"type": "Submit", "label": uuid.uuid4().hex, "prompt": 0, "params": params}
        send(socket, submit, prompt.encode())
        text = ""
        while True:
            answer = msgpack.unpackb(socket.recv_multipart()[1])
            if answer["type"] == "Output":
                text += answer["text"]
                print(answer["text"], end="", flush=True)
                next_index = answer["index"] + len(answer["token_ids"])
                received = {"type": "Received", "request_id": answer["request_id"]}
                send(socket, received | {"next_index": next_index})
            elif answer["type"] == "Done" and answer["reason"] != "failed":
                tokens = answer["usage"]["num_output_tokens"]
                end = {"type": "Received", "request_id": answer["request_id"], "is_done": True}
                send(socket, end | {"next_index": tokens})
                return text
            elif answer["type"] != "Accepted":
                raise SystemExit(f"{answer['type']}: {answer.get('message')}")


if __name__ == "__main__":
    generate(sys.argv[1], sys.argv[2])
