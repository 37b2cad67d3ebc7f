# SPDX-License-Identifier: MIT
"""Roles: whose certificate may do what, and that nothing else may do anything."""

import dataclasses
import datetime
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from joblet.admin import cert
from joblet.errors import FailedPrecondition, InvalidArgument, PermissionDenied, Unauthenticated
from joblet.server import access
from joblet.server.access import Identity, Role

NOW = datetime.datetime(2026, 3, 1, 12, tzinfo=datetime.UTC)
KEY = ec.generate_private_key(ec.SECP256R1())
ADMIN = Identity("a", Role.ADMIN, "1", "ff")
VIEWER = Identity("v", Role.VIEWER, "2", "ff")

# Every method of the contract and ours, and what a viewer may call.
METHODS = """
    JobService: RunJob GetJobStatus UpdateJob StopJob CancelJob DeleteJob DeleteAllJobs GetJobLogs
        ListJobs StreamJobMetrics GetJobMetrics StreamJobTelematics GetJobTelematics
    NetworkService: CreateNetwork ListNetworks RemoveNetwork
    VolumeService: CreateVolume ListVolumes RemoveVolume
    MonitoringService: GetSystemStatus StreamSystemMetrics
    RuntimeService: ListRuntimes GetRuntimeInfo TestRuntime RemoveRuntime BuildRuntime
        ValidateRuntimeYAML
"""
FOR_VIEWERS = """
    GetJobStatus GetJobLogs ListJobs StreamJobMetrics GetJobMetrics StreamJobTelematics
    GetJobTelematics ListNetworks ListVolumes GetSystemStatus StreamSystemMetrics ListRuntimes
    GetRuntimeInfo
"""


def full_names() -> Iterator[str]:
    service = ""
    for word in METHODS.split():
        if word.endswith(":"):
            service = word[:-1]
        else:
            yield f"/joblet.{service}/{word}"


FULL_NAMES = list(full_names())


def certificate(
    *units: str, name: str | None = "someone", key: ec.EllipticCurvePrivateKey = KEY
) -> x509.Certificate:
    attributes = [x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit) for unit in units]
    if name is not None:
        attributes.append(x509.NameAttribute(NameOID.COMMON_NAME, name))
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name(attributes))
        .issuer_name(x509.Name(attributes))
        .public_key(key.public_key())
        .serial_number(0xABC)
        .not_valid_before(NOW)
        .not_valid_after(NOW + datetime.timedelta(days=365))
        .sign(key, hashes.SHA256())
    )


def pem(*units: str, name: str | None = "someone") -> bytes:
    return certificate(*units, name=name).public_bytes(serialization.Encoding.PEM)


# -- methods ---------------------------------------------------------------------------------------


def test_the_table_has_every_method_and_no_other() -> None:
    assert set(access.OPERATIONS) == set(FULL_NAMES)


@pytest.mark.parametrize("method", FULL_NAMES)
def test_who_may_call_what(method: str) -> None:
    access.authorise(ADMIN, method)
    if method.rpartition("/")[2] in FOR_VIEWERS.split():
        access.authorise(VIEWER, method)
    else:
        with pytest.raises(
            PermissionDenied, match="role viewer is not allowed to perform operation"
        ):
            access.authorise(VIEWER, method)


def test_the_words_that_clients_know() -> None:
    with pytest.raises(PermissionDenied) as info:
        access.authorise(VIEWER, "/joblet.JobService/RunJob")
    assert str(info.value) == (
        "cannot call RunJob: role viewer is not allowed to perform operation run_job"
    )
    assert info.value.hint == "it takes a certificate with OU=admin"


@given(
    st.text()
    | st.sampled_from(FULL_NAMES).map(str.lower)
    | st.sampled_from(FULL_NAMES).map(lambda m: m[1:])
)
def test_what_is_not_in_the_table_is_nobodys(method: str) -> None:
    with pytest.raises(PermissionDenied, match="nobody may"):
        access.authorise(ADMIN, method)


# -- identities ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "role"),
    [
        ("admin", Role.ADMIN),
        ("ADMIN", Role.ADMIN),
        ("Viewer", Role.VIEWER),
        (" viewer ", Role.VIEWER),
    ],
)
def test_a_role_is_the_organizational_unit(unit: str, role: Role) -> None:
    data = pem(unit)
    identity = access.identify(data)
    assert (identity.name, identity.role, identity.serial) == ("someone", role, "abc")
    fingerprint = x509.load_pem_x509_certificate(data).fingerprint(hashes.SHA256())
    assert identity.fingerprint == fingerprint.hex()


@pytest.mark.parametrize(
    "units",
    [
        (), ("operator",), ("administrator",), ("admin viewer",), ("admin,viewer",), ("admin\x00",),
        ("аdmin",), ("admin", "viewer"), ("admin", "engineering"), ("viewer", ""), ("adm\u0131n",),
    ],
)  # fmt: skip
def test_anything_else_has_no_role(units: tuple[str, ...]) -> None:
    if "" in units:
        units = (*(unit for unit in units if unit), " ")
    with pytest.raises(PermissionDenied, match="cannot give the client a role"):
        access.identify(pem(*units))


def test_the_same_unit_twice_is_one_role() -> None:
    assert access.identify(pem("admin", "ADMIN")).role is Role.ADMIN


def test_names_are_printable_and_short() -> None:
    assert access.identify(pem("admin", name=None)).name == ""
    assert access.identify(pem("admin", name="a\nb\x1b[31m")).name == "a?b?[31m"
    assert access.identify(pem("admin", name="n" * 64)).name == "n" * 64
    with pytest.raises(PermissionDenied) as info:
        access.identify(pem("x\ny"))
    assert "OU=x?y" in str(info.value)


@pytest.mark.parametrize(
    "data", [b"", b"x", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_no_certificate_no_identity(data: bytes) -> None:
    with pytest.raises(Unauthenticated, match="cannot identify the client"):
        access.identify(data)


@given(st.integers(0, 10_000), st.binary(max_size=3))
def test_a_damaged_certificate_is_refused_or_read(at: int, junk: bytes) -> None:
    whole = pem("admin")
    at %= len(whole)
    damaged = whole[:at] + junk + whole[at + len(junk) :]
    try:
        identity = access.identify(damaged)
    except (Unauthenticated, PermissionDenied):
        return
    assert identity.role in Role


def test_parsing_is_cached_and_the_cache_is_bounded() -> None:
    data = pem("viewer")
    assert access.identify(data) is access.identify(bytes(bytearray(data)))
    assert access.identify.cache_info().maxsize == 512


def test_an_identity_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ADMIN.role = Role.VIEWER  # type: ignore[misc]


def test_grpc_is_not_imported() -> None:
    code = "import sys, joblet.server.access; assert 'grpc' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])


# -- the server's own certificate ------------------------------------------------------------------


SOURCE = cert.Source(NOW)


@pytest.fixture(scope="module")
def authority() -> cert.Credential:
    return cert.make_authority(SOURCE, days=3650)


@pytest.fixture(scope="module")
def server(authority: cert.Credential) -> cert.Credential:
    return cert.make_server(SOURCE, authority, ["joblet"], days=365)


def check(server: cert.Credential, key: str, ca: str, *, days: float = 1) -> tuple[str, ...]:
    now = NOW + datetime.timedelta(days=days)
    return access.check_server(server.certificate_pem, key, ca, now=now)


def test_a_sound_server_certificate(authority: cert.Credential, server: cert.Credential) -> None:
    assert check(server, server.key_pem, authority.certificate_pem) == ()


def test_dates(authority: cert.Credential, server: cert.Credential) -> None:
    def at(days: float) -> tuple[str, ...]:
        return check(server, server.key_pem, authority.certificate_pem, days=days)

    assert at(334) == ()
    assert at(336) == ("security.serverCert expires on 2027-03-01",)
    assert at(366) == ("security.serverCert expired on 2027-03-01",)
    assert at(-1)[0].startswith("security.serverCert is valid only from 2026-03-01 11:00 UTC on")
    assert at(3651) == (
        "security.serverCert expired on 2027-03-01",
        "security.caCert expired on 2036-02-27",
    )


def test_a_foreign_ca_is_a_warning(server: cert.Credential) -> None:
    other = cert.make_authority(SOURCE, days=3650)
    assert check(server, server.key_pem, other.certificate_pem) == (
        "security.serverCert is not signed by security.caCert",
    )


def test_several_cas(authority: cert.Credential, server: cert.Credential) -> None:
    other = cert.make_authority(SOURCE, days=3650)
    both = other.certificate_pem + authority.certificate_pem
    assert check(server, server.key_pem, both) == ()


def test_what_cannot_work(authority: cert.Credential, server: cert.Credential) -> None:
    ca = authority.certificate_pem
    with pytest.raises(FailedPrecondition, match="serverKey is not the key of"):
        check(server, authority.key_pem, ca)
    damaged = server.key_pem.replace("M", "N", 1)
    with pytest.raises(FailedPrecondition, match="damaged") as info:
        check(server, damaged, ca)
    assert damaged.splitlines()[1] not in info.value.text
    with pytest.raises(FailedPrecondition, match="there is no PEM certificate"):
        check(server, server.key_pem, "nothing")
    with pytest.raises(InvalidArgument, match="damaged"):
        access.certificates("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----")


@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(public_exponent=65537, key_size=2048),
        ed25519.Ed25519PrivateKey.generate(),
        ec.generate_private_key(ec.SECP384R1()),
    ],
    ids=["rsa", "ed25519", "p384"],
)
def test_signatures_of_other_authorities(
    key: rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey,
) -> None:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "CA")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + datetime.timedelta(days=1))
    )
    signed = builder.sign(
        key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    )
    assert access.signed_by(signed, signed)
    assert not access.signed_by(signed, certificate("admin"))


def test_the_same_name_is_not_the_same_signature(authority: cert.Credential) -> None:
    other = cert.make_authority(SOURCE, days=3650)
    assert other.certificate.subject == authority.certificate.subject
    assert not access.signed_by(other.certificate, authority.certificate)
