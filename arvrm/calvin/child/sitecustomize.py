"""Found first by Python processes that a script starts, since `install` puts this folder on PYTHONPATH."""

import importlib.machinery
import importlib.util
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))

if os.environ.get("ARVRM_CALVIN"):
    from arvrm.calvin import install

    install()

# Whoever has a sitecustomize of their own still gets it.
_next = importlib.machinery.PathFinder.find_spec("sitecustomize", [p for p in sys.path if os.path.abspath(p) != HERE])
if _next is not None and _next.loader is not None:
    _next.loader.exec_module(importlib.util.module_from_spec(_next))
