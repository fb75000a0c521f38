"""Python imports this at its start where PYTHONPATH leads here: nothing in it reaches another machine."""

import socket

HERE = ("127.0.0.1", "::1", "localhost", "0.0.0.0", "", None)


def _local(real):  # type: ignore[no-untyped-def]
    def guarded(self, address, *args):  # type: ignore[no-untyped-def]
        far = self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in HERE
        assert not far, f"no test may use the network: {address}"
        return real(self, address, *args)

    return guarded


def _known(host, *args, **kwargs):  # type: ignore[no-untyped-def]
    assert host in (*HERE, socket.gethostname()), f"no test may use the network: {host}"
    return _resolve(host, *args, **kwargs)


_resolve = socket.getaddrinfo
socket.getaddrinfo = _known
for _name in ("connect", "connect_ex"):
    setattr(socket.socket, _name, _local(getattr(socket.socket, _name)))
