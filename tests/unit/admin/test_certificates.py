# SPDX-License-Identifier: MIT
"""The certificates, in real handshakes: Python's ssl with strict checks, openssl, and gRPC."""

import datetime
import ipaddress
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from joblet.admin import cert
from joblet.errors import InvalidArgument
from joblet.server import access
from joblet.server.access import Role

NAMES = ["joblet", "localhost", "127.0.0.1", "::1", "node-1.example.org"]
# Handshakes look at the real clock, so these tests do too.
SOURCE = cert.Source(datetime.datetime.now(datetime.UTC))


class Party:
    """An authority and all that it signed, as files where ssl wants files."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = cert.make_authority(SOURCE, days=10)
        self.server = cert.make_server(SOURCE, self.authority, NAMES, days=5)
        self.admin = cert.make_client(SOURCE, self.authority, Role.ADMIN, days=5)
        self.viewer = cert.make_client(SOURCE, self.authority, Role.VIEWER, days=5)

    def files(self, credential: cert.Credential) -> str:
        path = self.directory / f"{credential.certificate.serial_number:x}.pem"
        path.write_text(credential.certificate_pem + credential.key_pem)
        return str(path)

    def context(self, purpose: ssl.Purpose, credential: cert.Credential | None) -> ssl.SSLContext:
        context = ssl.create_default_context(purpose, cadata=self.authority.certificate_pem)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # Python 3.13's default, which refuses chains without key identifiers.
        context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
        context.verify_mode = ssl.CERT_REQUIRED
        if credential is not None:
            context.load_cert_chain(self.files(credential))
        return context


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Party:
    return Party(tmp_path_factory.mktemp("ours"))


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Party:
    return Party(tmp_path_factory.mktemp("theirs"))


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> bytes:
    """Both ends shake hands and the client says a word. Returns the client's certificate as the
    server has it. Raises the server's error, else the client's.
    """
    ours, peer = socket.socketpair()
    ours.settimeout(20)
    peer.settimeout(20)

    def serve() -> bytes:
        with ours, server.wrap_socket(ours, server_side=True) as wrapped:
            assert wrapped.recv(2) == b"hi"
            wrapped.sendall(b"ho")
            return wrapped.getpeercert(binary_form=True) or b""

    def dial() -> None:
        with peer, client.wrap_socket(peer, server_hostname=name) as wrapped:
            wrapped.sendall(b"hi")
            assert wrapped.recv(2) == b"ho"

    with ThreadPoolExecutor(2) as pool:
        serving, dialling = pool.submit(serve), pool.submit(dial)
        try:
            dialling.result()
        finally:
            seen = serving.result()
        return seen


SERVER, CLIENT = ssl.Purpose.CLIENT_AUTH, ssl.Purpose.SERVER_AUTH  # what each end verifies


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_both_ends_accept_each_other(ours: Party, name: str, version: ssl.TLSVersion) -> None:
    server = ours.context(SERVER, ours.server)
    server.maximum_version = version
    for credential, role in ((ours.admin, Role.ADMIN), (ours.viewer, Role.VIEWER)):
        der = handshake(server, ours.context(CLIENT, credential), name)
        identity = access.identify(ssl.DER_cert_to_PEM_cert(der).encode())
        assert (identity.role, identity.name) == (role, f"{role}-client")


def test_another_name_is_refused(ours: Party) -> None:
    with pytest.raises(ssl.SSLError):
        handshake(ours.context(SERVER, ours.server), ours.context(CLIENT, ours.admin), "elsewhere")


def test_a_foreign_authority_is_refused_at_both_ends(ours: Party, theirs: Party) -> None:
    with pytest.raises(ssl.SSLError):  # their client trusts another server
        handshake(ours.context(SERVER, ours.server), theirs.context(CLIENT, theirs.admin), "joblet")
    intruder = ours.context(CLIENT, theirs.admin)  # trusts ours, shows theirs
    with pytest.raises(ssl.SSLError):
        handshake(ours.context(SERVER, ours.server), intruder, "joblet")


def test_no_certificate_no_connection(ours: Party) -> None:
    with pytest.raises(ssl.SSLError):
        handshake(ours.context(SERVER, ours.server), ours.context(CLIENT, None), "joblet")


def test_a_certificate_serves_one_purpose(ours: Party) -> None:
    with pytest.raises(ssl.SSLError):  # the server's, used by a client
        handshake(ours.context(SERVER, ours.server), ours.context(CLIENT, ours.server), "joblet")
    with pytest.raises(ssl.SSLError):  # a client's, used by a server
        handshake(ours.context(SERVER, ours.admin), ours.context(CLIENT, ours.admin), "joblet")


def test_a_client_cannot_sign(ours: Party, tmp_path: Path) -> None:
    forged = cert.make_client(SOURCE, ours.admin, Role.ADMIN, days=5)
    chained = tmp_path / "forged.pem"
    chained.write_text(forged.certificate_pem + ours.admin.certificate_pem + forged.key_pem)
    client = ours.context(CLIENT, None)
    client.load_cert_chain(chained)
    with pytest.raises(ssl.SSLError):
        handshake(ours.context(SERVER, ours.server), client, "joblet")


@pytest.mark.parametrize(("what", "purpose"), [("server", "sslserver"), ("admin", "sslclient")])
def test_openssl_agrees(ours: Party, tmp_path: Path, what: str, purpose: str) -> None:
    ca = tmp_path / "ca.crt"
    ca.write_text(ours.authority.certificate_pem)
    leaf = tmp_path / "leaf.crt"
    leaf.write_text(getattr(ours, what).certificate_pem)
    command = [
        "openssl",
        "verify",
        "-x509_strict",
        "-purpose",
        purpose,
        "-CAfile",
        str(ca),
        str(leaf),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# -- gRPC ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address(ours: Party) -> Iterator[str]:
    """A gRPC server over mutual TLS, whose one method says who is calling."""

    def who(_: bytes, context: grpc.ServicerContext) -> bytes:
        (pem,) = context.auth_context()["x509_pem_cert"]
        identity = access.identify(pem)
        return f"{identity.name} {identity.role} {identity.serial}".encode()

    handlers = {"Who": grpc.unary_unary_rpc_method_handler(who)}
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.S", handlers)])
    credentials = grpc.ssl_server_credentials(
        [(ours.server.key_pem.encode(), ours.server.certificate_pem.encode())],
        root_certificates=ours.authority.certificate_pem.encode(),
        require_client_auth=True,
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait(20)


def ask(
    address: str, trust: Party, client: cert.Credential | None, *options: tuple[str, str]
) -> bytes:
    pair = (client.key_pem.encode(), client.certificate_pem.encode()) if client else (None, None)
    credentials = grpc.ssl_channel_credentials(trust.authority.certificate_pem.encode(), *pair)
    with grpc.secure_channel(address, credentials, options=options) as channel:
        answer: bytes = channel.unary_unary("/test.S/Who", bytes, bytes)(b"", timeout=20)
    return answer


def test_grpc_sees_the_roles(ours: Party, address: str) -> None:
    for credential, role in ((ours.admin, "admin"), (ours.viewer, "viewer")):
        serial = f"{credential.certificate.serial_number:x}"
        assert ask(address, ours, credential).decode() == f"{role}-client {role} {serial}"


def test_grpc_clients_may_pin_the_name_joblet(ours: Party, address: str) -> None:
    override = ("grpc.ssl_target_name_override", "joblet")
    assert ask(address, ours, ours.admin, override).startswith(b"admin-client")


def test_grpc_refuses_strangers(ours: Party, theirs: Party, address: str) -> None:
    strangers: list[Callable[[], bytes]] = [
        lambda: ask(address, ours, None),
        lambda: ask(address, ours, theirs.admin),
        lambda: ask(address, theirs, theirs.admin),
        lambda: ask(address, ours, ours.server),
    ]
    for stranger in strangers:
        with pytest.raises(grpc.RpcError) as info:
            stranger()
        assert info.value.code() is grpc.StatusCode.UNAVAILABLE


# -- contents --------------------------------------------------------------------------------------


def test_names_and_roles_are_the_published_ones(ours: Party) -> None:
    def subject(credential: cert.Credential) -> tuple[str, list[str]]:
        name = credential.certificate.subject
        units = name.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
        return access.common_name(name), [str(unit.value) for unit in units]

    assert subject(ours.authority) == ("Joblet-CA", ["CA"])
    assert subject(ours.server) == ("joblet-server", [])
    assert subject(ours.admin) == ("admin-client", ["admin"])
    assert subject(ours.viewer) == ("viewer-client", ["viewer"])


def test_extensions(ours: Party) -> None:
    key_id = x509.SubjectKeyIdentifier.from_public_key(ours.authority.key.public_key())
    for credential, is_ca in ((ours.authority, True), (ours.server, False), (ours.viewer, False)):
        extensions = credential.certificate.extensions
        basic = extensions.get_extension_for_class(x509.BasicConstraints)
        usage = extensions.get_extension_for_class(x509.KeyUsage)
        above = extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
        assert (basic.critical, basic.value.ca) == (True, is_ca)
        assert usage.critical
        assert (usage.value.key_cert_sign, usage.value.digital_signature) == (is_ca, not is_ca)
        assert above.value.key_identifier == key_id.digest
        own = extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        assert own == x509.SubjectKeyIdentifier.from_public_key(credential.key.public_key())


def test_alternative_names_are_unique_and_in_usual_form() -> None:
    authority = cert.make_authority(SOURCE, days=1)
    given = ["JOBLET", "joblet", "[::1]", "0:0:0:0:0:0:0:1", "10.0.0.1"]
    server = cert.make_server(SOURCE, authority, given, days=1)
    assert cert.alternative_names(server.certificate) == ["joblet", "::1", "10.0.0.1"]
    extension = server.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    addresses = extension.value.get_values_for_type(x509.IPAddress)
    assert ipaddress.ip_address("::1") in addresses
    assert cert.alternative_names(authority.certificate) == []


@pytest.mark.parametrize(
    "name", ["", "a b", "*.example.org", "1.2.3", "é.example", "a" * 300, "a:1"]
)
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgument, match="no host name and no IP address"):
        cert.unique([name])


def test_clock_and_randomness_are_parameters() -> None:
    serials = iter(range(100, 200))
    now = datetime.datetime(2030, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
    key = cert.make_authority(SOURCE, days=1).key
    source = cert.Source(now, lambda: key, lambda: next(serials))
    authority = cert.make_authority(source, days=10)
    client = cert.make_client(source, authority, Role.ADMIN, name="ci", days=5)
    assert authority.certificate.serial_number == 100
    assert client.certificate.serial_number == 101
    assert client.key is key
    assert access.validity(client.certificate) == (
        now - datetime.timedelta(hours=1),
        now + datetime.timedelta(days=5),
    )
    assert access.common_name(client.certificate.subject) == "ci"


def test_nothing_outlives_its_authority() -> None:
    authority = cert.make_authority(SOURCE, days=10)
    client = cert.make_client(SOURCE, authority, Role.VIEWER, days=365)
    assert access.validity(client.certificate)[1] == access.validity(authority.certificate)[1]


@pytest.mark.parametrize("days", [0, -1, 36501])
def test_days_have_bounds(days: int) -> None:
    with pytest.raises(InvalidArgument, match="not from 1 to 36500"):
        cert.make_authority(SOURCE, days=days)


def test_a_key_is_in_no_repr(ours: Party) -> None:
    assert "PrivateKey" not in repr(ours.admin)
