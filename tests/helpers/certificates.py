"""An authority that makes certificates for servers on loopback."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_DAY = timedelta(days=1)


class Authority:
    """A certificate authority that nobody trusts who is not told to.

    Args:
        directory: where it writes certificates and keys.

    Attributes:
        path: its own certificate.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority of the tests")])
        builder = _builder(self._name, self._name, self._key).add_extension(
            x509.BasicConstraints(True, 0), critical=True
        )
        self.path = directory / "authority.pem"
        self.path.write_bytes(self._sign(builder))

    def server(self, *hosts: str, ended_days_ago: int = -1) -> ssl.SSLContext:
        """What a server presents that is called `hosts` (names and addresses)."""
        key = ec.generate_private_key(ec.SECP256R1())
        ends = datetime.now(UTC) - ended_days_ago * _DAY
        builder = _builder(x509.Name([]), self._name, key, ends=ends)
        builder = builder.add_extension(
            x509.SubjectAlternativeName([_general_name(each) for each in hosts]), critical=True
        )
        path = self._directory / "server.pem"
        path.write_bytes(_private(key) + self._sign(builder))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context

    def _sign(self, builder: x509.CertificateBuilder) -> bytes:
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        signed = builder.add_extension(issuer, critical=False).sign(self._key, hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.PEM)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, *, ends: datetime | None = None
) -> x509.CertificateBuilder:
    ends = ends or datetime.now(UTC) + _DAY
    return x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        public_key=key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=ends - 2 * _DAY,
        not_valid_after=ends,
    )


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)
