"""The bundle: a directory (or its zip) that holds everything needed to run an exported model.

`manifest.json` describes the model and names every file with its SHA-256. A file is hashed before
its first use, so nothing that differs from what was exported is ever executed.
"""

from __future__ import annotations

import json
from pathlib import Path

from m2df_runtime.bundle.files import read_file
from m2df_runtime.bundle.manifest import MANIFEST_NAME, BundleFile, GraphName, Manifest, parse_manifest
from m2df_runtime.engine_names import Precision
from m2df_runtime.errors import InputError
from m2df_runtime.files import sha256_bytes, sha256_file
from m2df_runtime.pixels.spec import PIXELS_VERSION, ClipSpec

MAX_MANIFEST_BYTES = 2 << 20  # 20,000 labels; as the smallest values that JSON has, 50 MB of memory
IN_MEMORY_BYTES = 1_500_000_000  # protobuf, and so an ONNX file, ends at 2 GB
MAX_IN_MEMORY_BYTES = 2 << 30


class Bundle:
    """An opened bundle, for any thread. Files are checked against the manifest when they are first read."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def open(cls, path: Path | str) -> Bundle:
        """Open a bundle directory or zip.

        Raises:
            InputError: Not a bundle, another schema version, or a manifest that fails validation.
        """
        path = Path(path)
        if not path.exists():
            raise InputError(f"{path}: no such bundle", "m2df-export writes bundles to bundles/<name>/")
        return cls(path, parse_manifest(path, read_file(path, MANIFEST_NAME, None, MAX_MANIFEST_BYTES)[0]))

    def with_clip(self, clip: ClipSpec) -> Bundle:
        """The same bundle with other preprocessing, for example another region; its keys differ accordingly."""
        return Bundle(self.path, self.manifest.model_copy(update={"clip": clip}))

    def file(self, info: BundleFile) -> bytes | Path:
        """Content of one bundle file, verified: the very bytes that were hashed.

        Of a file above 1.5 GB in a directory bundle it is the path, which spares a copy in memory.

        Raises:
            InputError: The file is missing, has another size, or another hash.
        """
        target = self.path / info.path
        if info.bytes > IN_MEMORY_BYTES and target.is_file() and target.stat().st_size == info.bytes:
            self._check(info, sha256_file(target))
            return target
        data, digest = read_file(self.path, info.path, info.bytes, MAX_IN_MEMORY_BYTES)
        self._check(info, digest)
        return data

    def read(self, info: BundleFile) -> bytes:
        """Content of one bundle file as bytes, verified like `file`."""
        content = self.file(info)
        return content if isinstance(content, bytes) else content.read_bytes()

    def graph_file(self, graph: GraphName, precision: Precision) -> BundleFile:
        """The file of one graph in one precision.

        Raises:
            InputError: The bundle does not hold that precision.
        """
        files = self.manifest.graphs[graph].files
        if precision not in files:
            have = ", ".join(self.manifest.precisions) or "none complete"
            raise InputError(f"{self.path}: no {precision} {graph} graph (the bundle holds {have})")
        return files[precision]

    def key(self, *graphs: GraphName) -> str:
        """Hash that binds stored results to the named graphs, and to what feeds them.

        That is the tokenizer for `text`, preprocessing and pixel version for `visual`. The reference precision
        stands for the graph, so banks survive a change of precision.
        """
        bound: dict[str, object] = {}
        if "visual" in graphs:
            bound["clip"] = self.manifest.clip.model_dump(mode="json")
            bound["pixels"] = PIXELS_VERSION
        if "text" in graphs:
            bound["tokenizer"] = self.manifest.tokenizer.sha256
        reference = self.manifest.precisions[0]
        for graph in graphs:
            bound[graph] = self.manifest.graphs[graph].files[reference].sha256
        return sha256_bytes(json.dumps(bound, sort_keys=True).encode())

    def _check(self, info: BundleFile, digest: str) -> None:
        if digest != info.sha256:
            raise InputError(
                f"{self.path}: {info.path} does not match its hash in the manifest",
                "the file was changed, damaged or written anew; open the bundle again, or export it again",
            )
