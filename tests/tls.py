"""Certificates for test servers that speak TLS."""

import subprocess
from pathlib import Path


def make_certificates(folder: Path) -> None:
    """A certificate for localhost that is its own authority (own.pem, own.key), and one of a stranger."""
    for name in ("own", "stranger"):
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}",
             "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
             "-keyout", f"{folder}/{name}.key", "-out", f"{folder}/{name}.pem"],
            check=True, capture_output=True,
        )  # fmt: skip


def tls_config(folder: Path) -> tuple[str, ...]:
    """What a server is started with to have the first one."""
    return ("--tls-cert-file", f"{folder}/own.pem", "--tls-key-file", f"{folder}/own.key",
            "--tls-ca-cert-file", f"{folder}/own.pem", "--tls-auth-clients", "no")  # fmt: skip
