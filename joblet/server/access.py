# SPDX-License-Identifier: MIT
"""Who a client is and what it may do: a name and a role from its certificate, one table of methods.

TLS has verified the certificate's chain and dates before anything here sees it; what is decided
here is the role, from the subject's OU. Default deny: a method that is not in the table is
nobody's, and a certificate without exactly one known role has none.

Pure, and cryptography alone: certificates are PEM, as grpc hands them over. Must not import grpc.
"""

import dataclasses
import datetime
import enum
import functools
import re
from collections.abc import Mapping
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.x509.oid import NameOID

from joblet.errors import (
    FailedPrecondition,
    InvalidArgument,
    PermissionDenied,
    Unauthenticated,
    printable,
)

MAX_NAME: Final = 64  # characters; X.520's bound of a common name
EXPIRES_SOON: Final = datetime.timedelta(days=30)


class Role(enum.StrEnum):
    ADMIN = "admin"
    VIEWER = "viewer"


@dataclasses.dataclass(frozen=True, slots=True)
class Identity:
    """name: the certificate's CN, printable. serial, fingerprint (SHA-256): hex digits."""

    name: str
    role: Role
    serial: str
    fingerprint: str


@dataclasses.dataclass(frozen=True, slots=True)
class Operation:
    """What a method does, in the words that clients know, and who may do it."""

    name: str
    roles: frozenset[Role]


_ADMIN: Final = frozenset({Role.ADMIN})
_ALL: Final = frozenset(Role)


def _operations(
    service: str, methods: Mapping[str, tuple[str, frozenset[Role]]]
) -> dict[str, Operation]:
    return {f"/joblet.{service}/{method}": Operation(*what) for method, what in methods.items()}


# By gRPC's full method name. Several methods share an operation, as clients expect it.
OPERATIONS: Final[Mapping[str, Operation]] = {
    **_operations(
        "JobService",
        {
            "RunJob": ("run_job", _ADMIN),
            "UpdateJob": ("run_job", _ADMIN),
            "StopJob": ("stop_job", _ADMIN),
            "CancelJob": ("stop_job", _ADMIN),
            "DeleteJob": ("stop_job", _ADMIN),
            "DeleteAllJobs": ("stop_job", _ADMIN),
            "GetJobStatus": ("get_job", _ALL),
            "ListJobs": ("list_jobs", _ALL),
            "GetJobLogs": ("stream_jobs", _ALL),
            "StreamJobMetrics": ("get_job", _ALL),
            "GetJobMetrics": ("get_job", _ALL),
            "StreamJobTelematics": ("get_job", _ALL),
            "GetJobTelematics": ("get_job", _ALL),
        },
    ),
    **_operations(
        "NetworkService",
        {
            "CreateNetwork": ("run_job", _ADMIN),
            "RemoveNetwork": ("run_job", _ADMIN),
            "ListNetworks": ("list_jobs", _ALL),
        },
    ),
    **_operations(
        "VolumeService",
        {
            "CreateVolume": ("run_job", _ADMIN),
            "RemoveVolume": ("run_job", _ADMIN),
            "ListVolumes": ("list_jobs", _ALL),
        },
    ),
    **_operations(
        "MonitoringService",
        {
            "GetSystemStatus": ("get_system_status", _ALL),
            "StreamSystemMetrics": ("get_system_status", _ALL),
        },
    ),
    **_operations(
        "RuntimeService",
        {
            "ListRuntimes": ("list_jobs", _ALL),
            "GetRuntimeInfo": ("get_job", _ALL),
            # What is left runs something or writes, or parses whatever a client sends.
            "TestRuntime": ("run_job", _ADMIN),
            "RemoveRuntime": ("run_job", _ADMIN),
            "BuildRuntime": ("run_job", _ADMIN),
            "ValidateRuntimeYAML": ("run_job", _ADMIN),
        },
    ),
}


def authorise(identity: Identity, method: str) -> None:
    """Raises PermissionDenied unless `identity` may call `method`, a full name ("/joblet.S/M")."""
    operation = OPERATIONS.get(method)
    if operation is None:
        raise PermissionDenied(f"call {method[:100]}", "nobody may")
    if identity.role not in operation.roles:
        raise PermissionDenied(
            f"call {method.rpartition('/')[2]}",
            f"role {identity.role} is not allowed to perform operation {operation.name}",
            hint=f"it takes a certificate with OU={' or OU='.join(sorted(operation.roles))}",
        )


# On every call, with the same few certificates: what is parsed is kept. The bound is far above the
# number of a server's clients; a client cannot make certificates, so it cannot make us forget.
@functools.lru_cache(maxsize=512)
def identify(pem: bytes) -> Identity:
    """The identity in a peer's certificate, as gRPC's auth_context has it (x509_pem_cert).

    Raises Unauthenticated without a certificate, PermissionDenied without one clear role.
    """
    if not pem:
        raise Unauthenticated("identify the client", "it sent no certificate")
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        subject = certificate.subject
        serial = f"{certificate.serial_number:x}"
        fingerprint = certificate.fingerprint(hashes.SHA256()).hex()
    # seen for damaged ones: ValueError, TypeError, KeyError, UnsupportedAlgorithm, InvalidVersion
    except Exception:  # whatever the parser raises, there is no identity
        raise Unauthenticated("identify the client", "its certificate cannot be read") from None
    name, role = common_name(subject), role_of(subject)
    return Identity(name=name, role=role, serial=serial, fingerprint=fingerprint)


def role_of(subject: x509.Name) -> Role:
    """The role that a subject's OU names, in capitals or small letters. Raises PermissionDenied."""
    units = _values(subject, NameOID.ORGANIZATIONAL_UNIT_NAME)
    named = {unit.strip().lower() for unit in units}
    if len(named) == 1 and (name := named.pop()) in set(Role):
        return Role(name)
    given = " and ".join(f"OU={_name(unit)}" for unit in units) or "no OU"
    raise PermissionDenied(
        "give the client a role",
        f"its certificate has {given}",
        hint="it takes one OU: admin or viewer",
    )


def common_name(subject: x509.Name) -> str:
    names = _values(subject, NameOID.COMMON_NAME)
    return _name(names[0]) if names else ""


def _values(subject: x509.Name, oid: x509.ObjectIdentifier) -> list[str]:
    return [str(attribute.value) for attribute in subject.get_attributes_for_oid(oid)]


def _name(text: str) -> str:
    """A name that can stand in a log: it comes from outside, whoever signed it."""
    return printable(text[:MAX_NAME])


# -- the server's own certificate ------------------------------------------------------------------


def certificates(pem: str) -> list[x509.Certificate]:
    """All certificates in PEM text, in their order. Raises InvalidArgument."""
    blocks = re.findall(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", pem, re.DOTALL)
    try:
        found = [x509.load_pem_x509_certificate(block.encode()) for block in blocks]
    except Exception as error:  # the parser raises many kinds, see identify()
        raise InvalidArgument("read a certificate", f"it is damaged ({error})") from None
    if not found:
        raise InvalidArgument("read a certificate", "there is no PEM certificate")
    return found


def validity(certificate: x509.Certificate) -> tuple[datetime.datetime, datetime.datetime]:
    """From when and until when a certificate is valid, in UTC."""
    # cryptography 42 has names of its own for aware times, and warns of the old ones
    suffix = "_utc" if hasattr(certificate, "not_valid_after_utc") else ""
    begin: datetime.datetime = getattr(certificate, f"not_valid_before{suffix}")
    end: datetime.datetime = getattr(certificate, f"not_valid_after{suffix}")
    return begin.replace(tzinfo=datetime.UTC), end.replace(tzinfo=datetime.UTC)


def check_server(
    server_cert: str, server_key: str, ca_cert: str, *, now: datetime.datetime
) -> tuple[str, ...]:
    """What an operator should know about the server's certificate and the clients' CA, all PEM.

    Raises FailedPrecondition for what no TLS handshake can work with. An expired certificate is
    only a warning: clients will refuse it, but the jobs that run still need their server.
    """
    try:
        chain = certificates(server_cert)
        belongs = owns(server_key, chain[0])
        authorities = certificates(ca_cert)
    except InvalidArgument as error:
        raise FailedPrecondition(
            "use the certificates in the configuration", error.why, hint=_REMAKE
        ) from None
    if not belongs:
        raise FailedPrecondition(
            "use the certificates in the configuration",
            "security.serverKey is not the key of security.serverCert",
            hint=_REMAKE,
        )
    warnings = []
    for key, certificate in (("serverCert", chain[0]), *(("caCert", ca) for ca in authorities)):
        if when := expiry(certificate, now):
            warnings.append(f"security.{key} {when}")
    if not any(signed_by(chain[0], authority) for authority in (*chain[1:], *authorities)):
        warnings.append("security.serverCert is not signed by security.caCert")
    return tuple(warnings)


_REMAKE: Final = "make new ones with: joblet cert init --force"


def owns(key_pem: str, certificate: x509.Certificate) -> bool:
    """Whether a private key is a certificate's. Raises InvalidArgument for what is no key."""
    try:
        key = serialization.load_pem_private_key(key_pem.encode(), password=None)
    except Exception:  # the parser raises many kinds, see identify()
        # Without the reason: it may quote the key.
        raise InvalidArgument("read a private key", "it is damaged, or has a passphrase") from None
    form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return key.public_key().public_bytes(*form) == certificate.public_key().public_bytes(*form)


def expiry(certificate: x509.Certificate, now: datetime.datetime) -> str:
    """What is wrong with a certificate's dates, or soon will be: "expired on 2025-11-24", or ""."""
    begin, end = validity(certificate)
    if now < begin:
        return f"is valid only from {begin:%Y-%m-%d %H:%M} UTC on"
    if now > end:
        return f"expired on {end:%Y-%m-%d}"
    return f"expires on {end:%Y-%m-%d}" if end - now < EXPIRES_SOON else ""


def signed_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether `authority` signed `certificate`."""
    if certificate.issuer != authority.subject:
        return False
    key, signature, signed = (
        authority.public_key(),
        certificate.signature,
        certificate.tbs_certificate_bytes,
    )
    algorithm = certificate.signature_hash_algorithm
    try:
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, signed)
        elif isinstance(key, ec.EllipticCurvePublicKey) and algorithm:
            key.verify(signature, signed, ec.ECDSA(algorithm))
        elif isinstance(key, rsa.RSAPublicKey) and algorithm:
            key.verify(signature, signed, padding.PKCS1v15(), algorithm)
        else:
            return False
    except InvalidSignature:
        return False
    return True
