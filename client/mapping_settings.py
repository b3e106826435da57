"""How a shop's settings name the catalogue's products that its own numbers stand for."""

from pathlib import Path

from pydantic import Field, model_validator

from common.protocol import Frozen

OWN, THEIRS = "item_id", "catalogue_item_id"


class CatalogueMapping(Frozen):
    """Where a shop's own product numbers meet the catalogue's.

    Attributes
    ----------
    table
        A CSV or Parquet file with a row for each of the shop's products; or else
    by
        a column of the shop's own products table that holds a code such as the GTIN.
    columns
        ``item_id`` (the shop's own) and ``catalogue_item_id`` -> the file's columns, where their
        names differ.
    catalogue_column
        The catalogue's column with the same code; default: the one of the same name.
    """

    table: Path | None = None
    by: str = ""
    columns: dict[str, str] = Field(default_factory=dict)
    catalogue_column: str = ""

    @model_validator(mode="after")
    def _one_way(self) -> "CatalogueMapping":
        if (self.table is None) == (not self.by):
            raise ValueError('give either table = "FILE" or by = "COLUMN"')
        if self.table is None and self.columns:
            raise ValueError("columns names those of a table: by needs none")
        if self.table is not None and self.catalogue_column:
            raise ValueError("catalogue_column belongs to by: a table holds the catalogue's ids")
        for name in self.columns:
            if name not in (OWN, THEIRS):
                raise ValueError(f"columns knows {OWN} and {THEIRS}, not {name!r}")
        return self

    @property
    def theirs(self) -> str:
        """The catalogue's column with the code of ``by``."""
        return self.catalogue_column or self.by
