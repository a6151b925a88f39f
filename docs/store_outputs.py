"""Execute the tutorials and store their outputs, without what is written to standard error.

python docs/store_outputs.py
"""

from pathlib import Path

import nbformat
from nbclient import NotebookClient


def main() -> None:
    """Execute every notebook in place."""
    for path in sorted((Path(__file__).parent / "tutorials").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        NotebookClient(notebook, timeout=300, record_timing=False).execute()
        for cell in notebook.cells:
            cell.metadata = {}
            if cell.cell_type == "code":
                cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        nbformat.write(notebook, path)
        print(f"stored {path.name}")


if __name__ == "__main__":
    main()
