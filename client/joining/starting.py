"""A new shop's folder: settings with every key explained, its keys, and places for its data."""

import re
from pathlib import Path

from client.joining.keys import complete_keys, make_keys, make_secret, write_new
from client.shop_folder import ShopFolder
from common.addresses import split_address
from common.config import toml_value
from common.errors import ConfigError
from common.shop_names import file_stem

#: Stands in new settings until the operator's own takes its place.
EXAMPLE_ADDRESS = "federation.example:8443"
#: Below the shop's folder.
NODE_KEY = Path("keys", "node.key")

_SETTINGS = """\
# The settings of one shop. They are read on this machine only: no server can change or see them.
# Relative paths start from this file's folder.

# The shop's name, as the merchant_id column of its data has it. A table without that column holds
# the shop's own rows alone.
merchant_id = {merchant}

# The shop's tables: a folder that holds interactions.csv or interactions.parquet, with the columns
#   user_id, item_id, timestamp (2024-05-31T14:00:00Z, or seconds since 1970 UTC) and
#   behavior (view, favourite, cart, purchase or rating)
# and perhaps merchant_id, rating and session_id (the basket). customers (user_id, and what is known
# of them, such as age) and stock (item_id) may be there too. item_id is the number that the
# catalogue uses, or your own: see [catalogue_mapping] below.
data = "data"

# Or a SQL database: take out the line above, and use [database] at the end of this file.

# The federation's public catalogue, as its operator publishes it: a folder.
catalogue = "catalogue"

# What this shop has spent of its customers' privacy. Keep it: a lost ledger can't be made again.
ledger = "ledger/ledger.sqlite"

# Where the models that the federation sends home are kept.
models = "models"
# So many of the newest are kept whole, and the one that the shop adapted to; of older ones only the
# manifest stays. 0 keeps all.
keep_models = 3

# All that one customer may ever lose by what leaves this shop, over all runs: ε at this δ. A run
# that does not fit under the cap is refused as a whole. Smaller is safer; 8 is the usual order.
cap_epsilon = 8.0
cap_delta = 1e-5

# What the promise protects: a customer with all of their records, or, weaker, one "basket" or one
# "interaction". A run that protects anything else is refused.
unit = "customer"

# Where noise comes from. "system" is the operating system's generator. "seeded" can be replayed,
# protects nobody and is for simulations; it also needs insecure_seeded_noise and noise_seed.
noise = "system"
insecure_seeded_noise = false
noise_seed = 0

# Whether a run without any differential privacy may train here: for simulations only.
allow_unprotected = false

# Rows that break the contract: "refuse" stops training until they are mended, "set-aside" leaves
# them out. `python -m client check` shows them.
bad_rows = "refuse"

# The best rating that a customer can give.
rating_scale = 5.0

# The federation: the address of its gateway and its certificate authority, both from the operator,
# and this shop's private key, which stays here. The operator enrols the public key beside it.
[federation]
address = {address}
ca = "ca.crt"
key = "keys/node.key"

# How much one record of a behaviour says, 0 for nothing; without this section as shown.
# [behavior_weights]
# view = 0.1
# favourite = 0.5
# cart = 0.5
# purchase = 1.0
# rating = 1.0

# How the shop uses a model for itself, with `python -m client adapt`, `evaluate` and `recommend`.
# [home]
# validation_share = 0.2    # of the time, at its end: what the weights are chosen on
# test_share = 0.2          # of the time, at its end: what evaluate holds back
# own_products = true       # know, at home alone, what your own products table describes and the
#                           # catalogue does not hold: products.csv or .parquet with item_id and the
#                           # catalogue's columns, beside interactions, or [database.products]

# Consent to release the shop's own figures of the global model, with noise: charged to the ledger,
# under the cap. Without this section nothing of them leaves the shop.
# [evaluation]
# epsilon = 0.5

# Consent to runs whose trust is "federation": the server sees only the sum over shops, and each
# shop adds a share of its noise. Take the # off the next line, and accept the roster that the
# operator sends (`python -m client roster`): it says among whose sums this shop hides its own.
# [secure_sum]
# key = "keys/node.key"              # signs what the shop says: the key that is enrolled
# roster = "roster"                  # the shop's own copy
# sessions = "sums/sessions.sqlite"  # what it said so far; of no use in a backup
# colluding_shops = 0                # so many shops may work together with the server: a plan that
#                                    # allows for fewer is refused

# If item_id is your own product number: which of the catalogue's products it is. Several of yours
# may be one of the catalogue's, not the other way round. What the mapping does not name takes no
# part. Either a .csv or .parquet file with item_id (yours) and catalogue_item_id:
# [catalogue_mapping]
# table = "mapping.csv"
# columns = {{ item_id = "our_no", catalogue_item_id = "federation_no" }}    # where names differ
# or, in place of table and columns, a column that your own products table and the catalogue both
# have, such as the GTIN; blanks, hyphens and leading zeros do not matter. Your products are
# products.csv or products.parquet with item_id, beside interactions, or [database.products]:
# by = "gtin"
# catalogue_column = "ean"    # where the catalogue calls it otherwise

# Any database that SQLAlchemy knows. The client reads and never writes; give it an account that
# may only read.
# [database]
# url = "postgresql://reader@127.0.0.1/shop"    # no password here; or "sqlite:///shop.db"
# password_env = "SHOP_DB_PASSWORD"             # an environment variable, or else
# password_file = "secrets/database-password"   # a file that holds nothing else, of mode 600
#
# One section for each table or query with interactions. columns: the contract's name = yours, where
# they differ. constants: merchant_id or behavior of all rows, where no column holds it.
# [[database.interactions]]
# table = "sales.orders"
# columns = {{ user_id = "customer_no", item_id = "gtin", timestamp = "ordered_at" }}
# constants = {{ behavior = "purchase" }}
#
# [[database.interactions]]
# query = "SELECT customer_no AS user_id, gtin AS item_id, seen_at AS timestamp FROM page_views"
# constants = {{ behavior = "view" }}
#
# Of customers only user_id, merchant_id where there is one, and the columns named here are read.
# [database.customers]
# table = "customers"
# columns = {{ user_id = "customer_no", age = "age_band" }}
#
# Your own products: item_id, for [catalogue_mapping] with by that column, and for own_products what
# the catalogue says of its products.
# [database.products]
# table = "articles"
# columns = {{ item_id = "article_no", gtin = "barcode" }}
"""


def start_shop(folder: Path, merchant_id: str = "", address: str = "") -> list[Path]:
    """Make a shop's folder; return what was made.

    A key or secret that is there already is kept: the operator may have enrolled it. The settings
    come last: what broke off before can be said again.

    Parameters
    ----------
    folder
        New, or without a ``shop.toml``: nothing is ever written over.
    merchant_id
        The shop's name; default: the folder's.
    address
        Of the federation's gateway, ``host:port``; default: an example to be replaced.

    Raises
    ------
    ConfigError
        If there is a ``shop.toml`` already, no shop can have that name, or the folder can't be
        written.
    """
    settings = folder / "shop.toml"
    name = merchant_id or re.sub(r"\s+", "-", folder.resolve().name) or "shop"
    name = name.encode("utf-8", "replace").decode()
    file_stem(name)  # Else the operator's `enrol` refused it, when everything else was made.
    if address:
        try:
            split_address(address)
        except ValueError as error:
            raise ConfigError(f"--address {address!r}: {error}") from error
    text = _SETTINGS.format(
        merchant=toml_value(name), address=toml_value(address or EXAMPLE_ADDRESS)
    )
    if settings.exists():
        raise ConfigError(f"{settings} is there already and stays as it is: choose another folder")
    made = [settings]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for below in ("data", "ledger", "keys", "secrets", "logs", "models", "adapted", "sums"):
            if not (folder / below).is_dir():
                (folder / below).mkdir(mode=0o700)
                made.append(folder / below)
    except FileExistsError as error:
        raise ConfigError(
            f"{error.filename} is there already and stays as it is: choose another folder"
        ) from error
    except OSError as error:
        raise ConfigError(f"cannot make {error.filename}: {error.strerror}") from error
    made += _own_files(folder)
    write_new(settings, text.encode(), 0o600)
    return made


def _own_files(folder: Path) -> list[Path]:
    """Make the shop's keys and secret where there are none; return what was made."""
    made: list[Path] = []
    key, secret = folder / NODE_KEY, ShopFolder(folder).secret
    if not key.exists():
        made += [key, make_keys(key)]
    elif (public := complete_keys(key)) is not None:
        made.append(public)
    if not secret.exists():
        make_secret(secret)
        made.append(secret)
    return made
