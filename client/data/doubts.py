"""What breaks no rule in a shop's tables and is hardly meant: for its engineer, at home."""

import unicodedata

import numpy as np
import pandas as pd
import pyarrow as arrow
import pyarrow.compute as pc

SHOWN = 3


def doubt_of_ids(user_ids: np.ndarray) -> str:
    """Return which of (U,) distinct ids of customers may be one person's; nothing where none are.

    What one customer adds is bounded for each id: who has two is two customers.
    """
    if not len(user_ids):
        return ""
    text = arrow.array(user_ids, arrow.string())
    if not pc.all(pc.string_is_ascii(text)).as_py():
        text = pc.utf8_normalize(text, "NFKC")
    bare = pc.utf8_ltrim(pc.utf8_trim_whitespace(pc.utf8_lower(text)), "0")
    keys = pd.Series(bare.dictionary_encode().indices.to_numpy())
    alike = keys.duplicated(keep=False).to_numpy()
    if not alike.any():
        return ""
    same = np.sort(user_ids[(keys == keys[np.argmax(alike)]).to_numpy()])[:SHOWN]
    # Where it is in how a letter is coded, they would look the same.
    looks = {unicodedata.normalize("NFC", name) for name in same}
    shown = " and ".join(map(repr if len(looks) == len(same) else ascii, same))
    return (
        f"{np.count_nonzero(alike):,} customers have ids that are another's but for capitals, "
        f"blanks around, leading zeros or how a letter is coded, such as {shown}: who has two ids "
        "is two customers, with twice the ε. What to do: give each customer one id, letter by "
        "letter, unless these are different people"
    )
