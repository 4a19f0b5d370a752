"""A server on loopback that says what a test wants it to say."""

import contextlib
import socket
import threading

import hiredis


class Scripted:
    """A server on loopback that lets everybody in and answers every other command with what `answers` holds."""

    def __init__(self) -> None:
        self.answers: list[bytes] = []
        self.heard: list[bytes] = []
        """Commands that no handshake has."""
        self.pong = b"+PONG\r\n"
        self.clients: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._listen)]
        self._threads[0].start()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.clients.append(client)
                self._threads.append(threading.Thread(target=self._serve, args=(client,)))
                self._threads[-1].start()

    def _serve(self, client: socket.socket) -> None:
        reader = hiredis.Reader()
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                reader.feed(data)
                for name, *_ in iter(reader.gets, False):
                    if name in (b"CLIENT", b"INFO", b"PING"):
                        client.sendall(self.pong if name == b"PING" else b"+OK\r\n")
                    else:
                        self.heard.append(name)
                        client.sendall(self.answers.pop(0))

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for client in self.clients:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for each in (self._listener, *self.clients):
            each.close()
