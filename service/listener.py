"""The gateway's socket, alone on its port or one of several there."""

import socket

_BACKLOG = 2048


def listen(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A listening socket.

    Args:
        port: 0 takes a free one.
        shared: others may listen there too, and the system deals new clients out to all of them;
            what one has not accepted when it ends is lost.

    Raises:
        OSError: the address cannot be bound.
    """
    try:
        return socket.create_server(
            (host, port), family=_family(host), backlog=_BACKLOG, reuse_port=shared
        )
    except OSError as error:
        raise OSError(
            error.errno, f"cannot listen on {host}:{port}: {error.strerror}; choose another port"
        ) from None


def reserve(host: str, port: int) -> socket.socket:
    """A socket that does not listen, but keeps the port for shared ones of this user.

    Raises:
        OSError: somebody has the port.
    """
    with listen(host, port) as probe:  # sees who shares it, too
        port = probe.getsockname()[1]
    reserved = socket.socket(_family(host), socket.SOCK_STREAM)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    reserved.bind((host, port))
    return reserved


def url_of(listener: socket.socket) -> str:
    """The address that clients use, `http://host:port`."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
