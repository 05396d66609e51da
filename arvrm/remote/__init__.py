"""Policies and robots that meet over a socket: messages, conventions, and the side that asks."""

from arvrm.remote.client import Found, RemotePolicy, ask_who
from arvrm.remote.codec import Codec, MessageError
from arvrm.remote.conventions import Conventions, as_values, load_conventions, native_conventions
from arvrm.remote.links import is_address
from arvrm.remote.wire import WireError, packed, unpacked

__all__ = [
    "Codec",
    "Conventions",
    "Found",
    "MessageError",
    "RemotePolicy",
    "WireError",
    "as_values",
    "ask_who",
    "is_address",
    "load_conventions",
    "native_conventions",
    "packed",
    "unpacked",
]
