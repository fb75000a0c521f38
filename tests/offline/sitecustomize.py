"""Python imports this at its start where PYTHONPATH leads here: nothing in it reaches another machine."""

import socket

HERE = ("127.0.0.1", "::1", "localhost", "0.0.0.0", "", None)


def _local(real):  # type: ignore[no-untyped-def]
    def guarded(self, address, *args):  # type: ignore[no-untyped-def]
        far = self.family in (socket.AF_INET, socket.AF_INET6) and not _here(address[0])
        assert not far, f"no test may use the network: {address}"
        return real(self, address, *args)

    return guarded


def _here(host):  # type: ignore[no-untyped-def]
    host = host.decode() if isinstance(host, bytes) else host
    return host in HERE or host == socket.gethostname() or str(host).startswith("127.")


def _sending(real):  # type: ignore[no-untyped-def]
    def guarded(self, data, *rest):  # type: ignore[no-untyped-def]
        far = self.family in (socket.AF_INET, socket.AF_INET6) and rest and not _here(rest[-1][0])
        assert not far, f"no test may use the network: {rest[-1]}"
        return real(self, data, *rest)

    return guarded


def _known(host, *args, **kwargs):  # type: ignore[no-untyped-def]
    assert _here(host), f"no test may use the network: {host}"
    return _resolve(host, *args, **kwargs)


def _named(host):  # type: ignore[no-untyped-def]
    assert _here(host), f"no test may use the network: {host}"
    return _by_name(host)


_resolve, _by_name = socket.getaddrinfo, socket.gethostbyname
socket.getaddrinfo, socket.gethostbyname = _known, _named
socket.socket.sendto = _sending(socket.socket.sendto)
for _name in ("connect", "connect_ex"):
    setattr(socket.socket, _name, _local(getattr(socket.socket, _name)))
