"""Dataset of plotly figures; apart from other datasets, since plotly loads slowly."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.io.core import AbstractDataset
from kedro_datasets._typing import PlotlyPreview

from recpipe.data.atomic import replaced_file

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


class FiguresDataset(AbstractDataset[dict[str, "Figure"], dict[str, "Figure"]]):
    """Figures by name, each in ``<name><suffix>`` of the folder ``path``; ``preview`` is shown in kedro-viz."""

    def __init__(
        self,
        *,
        path: str,
        preview: str,
        suffix: str = ".json",
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self._path, self._preview, self._suffix = Path(path), preview, suffix
        self.metadata = metadata

    def _describe(self) -> dict[str, Any]:
        return {"path": str(self._path), "suffix": self._suffix}

    def file(self, name: str) -> Path:
        """The file of a figure."""
        return self._path / f"{name}{self._suffix}"

    def load(self) -> dict[str, Figure]:
        import plotly.io

        files = sorted(self._path.glob(f"*{self._suffix}"))
        return {file.name.removesuffix(self._suffix): plotly.io.read_json(file) for file in files}

    def save(self, data: dict[str, Figure]) -> None:
        for name, figure in data.items():
            with replaced_file(self.file(name)) as part:
                part.write_text(figure.to_json(), encoding="utf-8")

    def preview(self) -> PlotlyPreview:
        """The figure that kedro-viz shows."""
        import json

        return PlotlyPreview(json.loads(self.file(self._preview).read_text(encoding="utf-8")))

    def _exists(self) -> bool:
        return self.file(self._preview).is_file()
