# SPDX-License-Identifier: MIT
"""Keys and certificates: a certificate authority, and what it signs for servers and clients.

Pure: time, serial numbers and keys come from a Source. ECDSA on P-256, which every client's TLS
has. Each certificate has subject and authority key identifiers, critical basic constraints and key
usage: Python 3.13 and later refuse a chain without them.
"""

import dataclasses
import datetime
import ipaddress
from collections.abc import Callable, Iterable
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from joblet.config.kinds import host
from joblet.errors import InvalidArgument
from joblet.server.access import Role, validity

# What clients may find the server under without anyone naming it: some pin "joblet", and all of
# them verify the name that they dial.
SERVER_NAMES: Final = ("joblet", "localhost", "joblet-server", "127.0.0.1", "::1")
# A certificate is valid from a little earlier on: clients' clocks may be behind.
BACKDATE: Final = datetime.timedelta(hours=1)
MAX_DAYS: Final = 36500


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """Where what differs from run to run comes from."""

    now: datetime.datetime  # aware
    key: Callable[[], ec.EllipticCurvePrivateKey] = _new_key
    serial: Callable[[], int] = x509.random_serial_number


@dataclasses.dataclass(frozen=True, slots=True)
class Credential:
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = dataclasses.field(repr=False)

    @property
    def certificate_pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def key_pem(self) -> str:
        return self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ).decode()


def make_authority(source: Source, *, days: int) -> Credential:
    """A certificate authority that signs itself, and may sign no other authority."""
    key = source.key()
    subject = _name("Joblet-CA", "CA")
    builder = _builder(source, subject, key, subject, key, _end(source, days))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(sign_certificates=True), critical=True)
    return Credential(builder.sign(key, hashes.SHA256()), key)


def make_server(
    source: Source, authority: Credential, names: Iterable[str], *, days: int
) -> Credential:
    """The server's certificate, good for `names` (host names and IP addresses).

    Raises InvalidArgument for a name that is neither.
    """
    alternatives = x509.SubjectAlternativeName([_general_name(name) for name in unique(names)])
    return _issue(
        source,
        authority,
        _name("joblet-server"),
        ExtendedKeyUsageOID.SERVER_AUTH,
        days,
        alternatives,
    )


def make_client(
    source: Source, authority: Credential, role: Role, *, name: str = "", days: int
) -> Credential:
    """A client's certificate; its role is its OU, its name goes into the server's audit records."""
    subject = _name(name or f"{role}-client", role)
    return _issue(source, authority, subject, ExtendedKeyUsageOID.CLIENT_AUTH, days)


def unique(names: Iterable[str]) -> list[str]:
    """Names in the form that a certificate has them, each once. Raises InvalidArgument."""
    return list(dict.fromkeys(_normal(name) for name in names))


def alternative_names(certificate: x509.Certificate) -> list[str]:
    """The host names and IP addresses that a certificate is good for."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    dns = extension.value.get_values_for_type(x509.DNSName)
    return [*dns, *(str(ip) for ip in extension.value.get_values_for_type(x509.IPAddress))]


def _issue(
    source: Source,
    authority: Credential,
    subject: x509.Name,
    purpose: x509.ObjectIdentifier,
    days: int,
    *extensions: x509.ExtensionType,
) -> Credential:
    key = source.key()
    # Nothing is valid longer than what vouches for it.
    end = min(_end(source, days), validity(authority.certificate)[1])
    builder = _builder(source, subject, key, authority.certificate.subject, authority.key, end)
    builder = builder.add_extension(
        x509.BasicConstraints(ca=False, path_length=None), critical=True
    )
    builder = builder.add_extension(_usage(sign_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return Credential(builder.sign(authority.key, hashes.SHA256()), key)


def _builder(
    source: Source,
    subject: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    end: datetime.datetime,
) -> x509.CertificateBuilder:
    """What all certificates have."""
    public = key.public_key()
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(source.serial())
        .not_valid_before(source.now - BACKDATE)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(identifier, critical=False)
    )


def _end(source: Source, days: int) -> datetime.datetime:
    if not 1 <= days <= MAX_DAYS:
        raise InvalidArgument("make a certificate", f"{days} days are not from 1 to {MAX_DAYS}")
    return source.now + datetime.timedelta(days=days)


def _name(common: str, unit: str = "") -> x509.Name:
    attributes = [(NameOID.ORGANIZATION_NAME, "Joblet"), (NameOID.COMMON_NAME, common)]
    if unit:
        attributes.append((NameOID.ORGANIZATIONAL_UNIT_NAME, unit))
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in attributes])


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _normal(name: str) -> str:
    try:
        return host(name).lower()
    except ValueError:
        raise InvalidArgument(
            "put a name into the certificate", f"{name!r:.80} is no host name and no IP address"
        ) from None


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
