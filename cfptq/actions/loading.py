"""Reading of an action set of any kind from its file."""

from __future__ import annotations

import os

from cfptq.actions import latent, semantic
from cfptq.actions.action_set import ActionSet
from cfptq.actions.latent import LatentActionSet
from cfptq.actions.network_files import read_document
from cfptq.actions.semantic import SemanticActionSet
from cfptq.io.files import as_path, check_regular_file

#: Bytes at the start of a file in which its format stands.
HEAD_BYTES = 2**10


def load_action_space(path: str | os.PathLike[str]) -> ActionSet | LatentActionSet | SemanticActionSet:
    """Read an action set of any kind, as its first line says.

    Raises:
        FileError: the file does not exist, is no action set, or a network beside it holds other bytes than those that were saved.
        ActionSetError: the action set contradicts itself.
    """
    file = as_path(path)
    if file.is_file():
        with check_regular_file(file).open("rb") as stream:
            start = stream.read(HEAD_BYTES)
        if latent.FORMAT.encode() in start or semantic.FORMAT.encode() in start:
            kind = read_document(file).get("format")
            if kind == latent.FORMAT:
                return LatentActionSet.load(file)
            if kind == semantic.FORMAT:
                return SemanticActionSet.load(file)
    return ActionSet.load(path)
