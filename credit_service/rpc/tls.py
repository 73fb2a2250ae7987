"""The server's certificate, read again when its files change, so that renewal needs no restart."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
import structlog

if TYPE_CHECKING:
    from pathlib import Path

_log = structlog.get_logger()


class CertificateError(Exception):
    """A certificate file cannot be used; the text says which and why."""


@dataclass(slots=True)
class ServerCertificate:
    """The files of the certificate.

    Attributes:
        chain: the certificate, with its intermediates, in PEM.
        key: its private key in PEM.
        client_ca: the authority that signs the certificates of callers; None: callers need none.
    """

    chain: Path
    key: Path
    client_ca: Path | None

    def credentials(self) -> grpc.ServerCredentials:
        """Reads the files now, and again at a handshake after they changed.

        Raises:
            CertificateError: a file cannot be used.
        """
        stamp = self._stamp()
        configuration = self._read()
        logged = ""

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            nonlocal stamp, logged
            try:
                newest = self._stamp()
                if newest == stamp:
                    return None
                renewed = self._read()
            except CertificateError as error:
                if logged != (logged := str(error)):
                    _log.error("new certificate is unusable, keeping the old one", problem=logged)
                return None
            stamp, logged = newest, ""
            _log.info("certificate renewed")
            return renewed

        return grpc.dynamic_ssl_server_credentials(
            configuration,
            fetch,  # type: ignore[arg-type]  # None says: unchanged
            require_client_authentication=self.client_ca is not None,
        )

    def _files(self) -> list[Path]:
        return [file for file in (self.key, self.chain, self.client_ca) if file is not None]

    def _stamp(self) -> list[tuple[int, int]]:
        try:
            return [(s.st_mtime_ns, s.st_ino) for s in (file.stat() for file in self._files())]
        except OSError as error:
            raise CertificateError(str(error)) from error

    def _read(self) -> grpc.ServerCertificateConfiguration:
        try:
            key, chain, *client_ca = (file.read_bytes() for file in self._files())
        except OSError as error:
            raise CertificateError(str(error)) from error
        self._require_usable()
        return grpc.ssl_server_certificate_configuration(
            [(key, chain)], root_certificates=client_ca[0] if client_ca else None
        )

    def _require_usable(self) -> None:
        """Refuses files that gRPC would accept silently and then fail with at every handshake."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # With no passphrase OpenSSL would ask for one at the terminal.
            context.load_cert_chain(self.chain, self.key, password="")
        except (OSError, ValueError) as error:
            raise CertificateError(
                f"{self.chain} and {self.key} must be a certificate in PEM form and its private"
                f" key without a passphrase: {error}"
            ) from error
        if self.client_ca is None:
            return
        try:
            context.load_verify_locations(self.client_ca)
        except (OSError, ValueError) as error:
            raise CertificateError(
                f"{self.client_ca} must hold certificates in PEM form: {error}"
            ) from error
