# SPDX-License-Identifier: MIT
"""A throw-away certificate authority for tests: PEM text, as configurations embed it."""

import dataclasses
import datetime
import ipaddress

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = datetime.timedelta(days=1)


@dataclasses.dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    cert: str
    key: str


class Authority:
    """Signs server and client certificates. They are valid from a day before `now` on."""

    def __init__(self, now: datetime.datetime, name: str = "Joblet-CA") -> None:
        self._now = now
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = self._builder(self._name, self._key.public_key(), days=10)
        builder = builder.add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        builder = builder.add_extension(
            x509.KeyUsage(
                digital_signature=True,
                key_cert_sign=True,
                crl_sign=True,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        self.cert = _pem(builder.sign(self._key, hashes.SHA256()))

    def server(self, *names: str, days: int = 5) -> Pair:
        """For the given DNS names and addresses."""
        sans = [_general_name(name) for name in names]
        return self._issue("joblet-server", "", days, ExtendedKeyUsageOID.SERVER_AUTH, sans)

    def client(self, unit: str) -> Pair:
        """With the role `unit` as OU."""
        return self._issue("client", unit, 5, ExtendedKeyUsageOID.CLIENT_AUTH, [])

    def _issue(
        self,
        common: str,
        unit: str,
        days: int,
        usage: x509.ObjectIdentifier,
        sans: list[x509.GeneralName],
    ) -> Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common)]
        if unit:
            attributes.append(x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit))
        builder = self._builder(x509.Name(attributes), key.public_key(), days)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        if sans:
            builder = builder.add_extension(x509.SubjectAlternativeName(sans), critical=False)
        cert = _pem(builder.sign(self._key, hashes.SHA256()))
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return Pair(cert, private.decode())

    def _builder(
        self, subject: x509.Name, public: ec.EllipticCurvePublicKey, days: int
    ) -> x509.CertificateBuilder:
        ours = self._key.public_key()
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._now - 30 * DAY)
            .not_valid_after(self._now + days * DAY)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ours), critical=False)
        )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(cert: x509.Certificate) -> str:
    return cert.public_bytes(serialization.Encoding.PEM).decode()
