"""MovieLens 100k and 1M as GroupLens distributes them, from the user's own copy."""

from pathlib import Path

import pandas as pd

from common.errors import DataError

GENRES_100K = (
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
)

RATINGS = ["user_id", "item_id", "rating", "timestamp"]

AGES_1M = {
    "1": "under 18",
    "18": "18-24",
    "25": "25-34",
    "35": "35-44",
    "45": "45-49",
    "50": "50-55",
    "56": "56+",
}
OCCUPATIONS_1M = (
    "other",
    "academic/educator",
    "artist",
    "clerical/admin",
    "college/grad student",
    "customer service",
    "doctor/health care",
    "executive/managerial",
    "farmer",
    "homemaker",
    "K-12 student",
    "lawyer",
    "programmer",
    "retired",
    "sales/marketing",
    "scientist",
    "self-employed",
    "technician/engineer",
    "tradesman/craftsman",
    "unemployed",
    "writer",
)


def movielens_frames(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Return interactions, products and customers of an unpacked ml-100k or ml-1m.

    Ratings are records of behaviour ``rating``. ``category`` is a film's genres joined by "|";
    each genre is a column of its own as well.

    Raises
    ------
    DataError
        If the folder holds neither.
    """
    if (folder / "u.data").is_file():
        return _ml_100k(folder)
    if (folder / "ratings.dat").is_file():
        return _ml_1m(folder)
    raise DataError(
        f"{folder} holds neither u.data (ml-100k) nor ratings.dat (ml-1m): unpack GroupLens' "
        "archive and give the folder that it creates"
    )


def _read(path: Path, names: list[str], separator: str) -> pd.DataFrame:
    if not path.is_file():
        raise DataError(f"{path} is missing: unpack all of GroupLens' archive")
    # The C parser knows no separator of two characters, and titles may hold one colon.
    lines = path.read_text(encoding="latin-1").splitlines()
    cells = [line.split(separator) for line in lines]
    for number, row in enumerate(cells, 1):
        if len(row) < len(names):
            raise DataError(f"{path.name}: row {number} has {len(row)} values, not {len(names)}")
    return pd.DataFrame([row[: len(names)] for row in cells], columns=names)


def _interactions(ratings: pd.DataFrame) -> pd.DataFrame:
    return ratings.assign(merchant_id="movielens", behavior="rating")


def _with_genres(films: pd.DataFrame, category: pd.Series) -> pd.DataFrame:
    flags = category.str.get_dummies("|")
    flags.columns = [f"genre_{name}" for name in flags.columns]
    table = films[["item_id", "title"]].assign(category=category)
    return pd.concat([table, flags.astype(str)], axis=1)


def _ml_100k(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    ratings = _read(folder / "u.data", RATINGS, "\t")
    names = ["item_id", "title", "released", "video", "url", *GENRES_100K]
    films = _read(folder / "u.item", names, "|")
    marks = films[list(GENRES_100K)].to_numpy() == "1"
    joined = ["|".join(g for g, on in zip(GENRES_100K, row, strict=True) if on) for row in marks]
    users = _read(folder / "u.user", ["user_id", "age", "gender", "occupation", "zip"], "|")
    decade = (users["age"].astype(int) // 10 * 10).astype(str) + "s"
    products = _with_genres(films, pd.Series(joined, dtype=str))
    return _interactions(ratings), products, users.drop(columns="zip").assign(age=decade)


def _ml_1m(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    ratings = _read(folder / "ratings.dat", RATINGS, "::")
    films = _read(folder / "movies.dat", ["item_id", "title", "genres"], "::")
    users = _read(folder / "users.dat", ["user_id", "gender", "age", "occupation", "zip"], "::")
    users = users.assign(
        age=users["age"].map(AGES_1M).fillna(users["age"]),
        occupation=[OCCUPATIONS_1M[int(code)] for code in users["occupation"]],
    )
    return _interactions(ratings), _with_genres(films, films["genres"]), users.drop(columns="zip")
