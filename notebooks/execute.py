"""Run notebooks from top to bottom and keep their outputs: `python notebooks/execute.py [NOTEBOOK ...]`, or all.

What is kept holds no times, no paths and no versions, so that a notebook that is run again on the same machine is the
same file. The metadata say on which arithmetic the outputs rest, see `kernels`.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from pathlib import Path

import nbclient
import nbformat
import torch
import torch.nn.functional as F
from nbformat import NotebookNode
from traitlets.config import Config

from sld.files import whole

FOLDER = Path(__file__).parent
NOTEBOOKS = tuple(sorted(FOLDER.glob("*.ipynb")))
SECONDS = 300
"""A cell may take, on a machine that does other work too."""

MEASURED = "measured"
"""Tag of a cell whose text rests on pictures. SLD amplifies rounding until it is seen, so other kernels, as another
processor may choose them, can print other values there; what the notebook concludes from them stands in its asserts."""


def execute(path: Path, checkpoint: Path | None = None) -> NotebookNode:
    """The notebook as it is after a run in a fresh kernel with one thread.

    Args:
        path: of the notebook, which stays as it is.
        checkpoint: what SLD_SD15 names; nothing if None, whatever it names here.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    import matplotlib.font_manager  # noqa: F401 (makes its cache, of which the first kernel would tell on stderr)

    notebook = nbformat.read(path, as_version=4)
    environment = {name: value for name, value in os.environ.items() if name != "SLD_SD15"}
    if checkpoint is not None:
        environment["SLD_SD15"] = str(checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        client = nbclient.NotebookClient(
            notebook,
            kernel_name="python3",
            config=Config({"KernelManager": {"transport": "ipc", "ip": f"{folder}/socket"}}),
            resources={"metadata": {"path": str(FOLDER)}},
            timeout=SECONDS,
            record_timing=False,
            coalesce_streams=True,
        )
        # nobody's own settings of IPython
        client.execute(env={**environment, "OMP_NUM_THREADS": "1", "IPYTHONDIR": folder})
    return _tidy(notebook)


def kernels() -> str:
    """Says by its bits how this machine rounds what the embedded model computes, with one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        generator = torch.Generator().manual_seed(0)
        digest = hashlib.sha256(torch.__version__.encode())
        for images in (1, 4, 12):
            for channels, side in ((48, 16), (96, 8), (160, 4)):
                x = torch.randn((images, channels, side, side), generator=generator)
                kernel = torch.randn((channels, channels, 3, 3), generator=generator)
                x = F.silu(F.group_norm(F.conv2d(x, kernel, padding=1), 16))
                places = F.layer_norm(x.flatten(2).mT, (channels,))
                places = F.scaled_dot_product_attention(places, places, places) @ kernel[..., 0, 0]
                digest.update(F.gelu(places).contiguous().numpy().tobytes())
    finally:
        torch.set_num_threads(threads)
    return digest.hexdigest()[:16]


def _tidy(notebook: NotebookNode) -> NotebookNode:
    """The same without what differs from run to run, or is there twice."""
    for number, cell in enumerate(notebook.cells, start=1):
        cell.id = f"cell-{number}"
        cell.metadata = {"tags": tags} if (tags := cell.metadata.get("tags")) else {}
        for output in cell.get("outputs", ()):
            output.get("data", {}).pop("image/jpeg", None)  # Pillow's pictures come as PNG too
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "sld": {"kernels": kernels()},
    }
    nbformat.validate(notebook)
    return notebook


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:] or NOTEBOOKS):
        with whole(path) as beside:
            nbformat.write(execute(path), beside)
        print(path.name)
