#!/usr/bin/env python3
"""A link with a latency: takes connections and passes on what comes, both ways, DELAY milliseconds later.
usage: delay.py DELAY_MS HOST:PORT...     prints the address of each link, in order, on one line"""
import queue
import socket
import sys
import threading
import time


def carry(source: socket.socket, target: socket.socket, delay_s: float) -> None:
    """Reading and writing apart, so that what is under way does not hold up what follows."""
    under_way: queue.SimpleQueue = queue.SimpleQueue()

    def deliver() -> None:
        while True:
            due, data = under_way.get()
            time.sleep(max(0.0, due - time.monotonic()))
            try:
                target.sendall(data) if data else target.shutdown(socket.SHUT_WR)
            except OSError:
                return
            if not data:
                return
    threading.Thread(target=deliver, daemon=True).start()
    data = b"-"
    while data:
        try:
            data = source.recv(1 << 18)
        except OSError:
            data = b""
        under_way.put((time.monotonic() + delay_s, data))


def serve(listener: socket.socket, target: tuple[str, int], delay_s: float) -> None:
    while True:
        near, _ = listener.accept()
        far = socket.create_connection(target)
        for a, b in ((near, far), (far, near)):
            a.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=carry, args=(a, b, delay_s), daemon=True).start()


def main() -> None:
    sys.setswitchinterval(0.0002)
    delay_s, addresses = float(sys.argv[1]) / 1000, []
    for address in sys.argv[2:]:
        host, port = address.rsplit(":", 1)
        listener = socket.create_server(("127.0.0.1", 0))
        addresses.append(f"127.0.0.1:{listener.getsockname()[1]}")
        threading.Thread(target=serve, args=(listener, (host, int(port)), delay_s), daemon=True).start()
    print(*addresses, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
