"""What a pass from TensorFlow is to make: the recipe's inputs, the parent's outputs, in order."""

from __future__ import annotations

from optkit.artifact import Artifact, Signature, TensorSpec
from optkit.plugin import Context


def asked(artifact: Artifact, context: Context) -> Signature:
    """Inputs as the recipe declares them, outputs as the artifact knows them, in the recipe's order."""
    assert artifact.signature is not None
    known: dict[str, TensorSpec] = {spec.name: spec for spec in artifact.signature.outputs}
    names = context.outputs or tuple(known)
    return Signature(context.inputs or artifact.signature.inputs, tuple(known[name] for name in names))
