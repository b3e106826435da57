"""The commented ``plan.toml`` of a new federation; imports nothing."""

#: In the operator's folder: what the next runs train.
PLAN_FILE = "plan.toml"

#: What a new federation begins with.
DEFAULT_PLAN = """\
# What the next runs train. `python -m server train --plan-only` says what it costs, before anything
# is asked of a shop. Everything here is public: nothing may depend on any shop's customers.

[privacy]
# Who is protected: "customer" (all records of one customer of one shop), "basket", "interaction".
unit = "customer"
# Whom the promise has to trust. "shop": nobody; each shop hides its own update in noise of its own.
# "federation": the shops hide one sum together, which is all that the server sees, so each adds a
# share of one noise. It needs a roster at every shop (`python -m server roster`) and, at the end of
# every sum, honest_shops that do not work together with whoever looks at it, however many of the
# others up to colluding_shops do: a shop that fears the others' looks sets 1 at least.
trust = "shop"
honest_shops = 0
colluding_shops = 0
# Where a stock table is published with the catalogue, a product's row travels from the shops that
# stock it alone: under trust "shop" always, in secure sums if so many honest ones are sure to be
# among them; else from "all" shops, from "enough" of the others to have so many, or from "none".
honest_stockers = 3
rare_rows = "all"
# The most that a run tells of one unit. A shop joins only if all of it fits under its own cap, with
# all that it spent before. A new shop's cap is 8: one run of 8 would leave no room for a second,
# ever; of 4 it holds three. Few shops or customers may need more for a model that is of use: spend
# it once the data and the plan are settled.
target_epsilon = 4.0
target_delta = 1e-5
# The part of it that buys the popularity histogram; the rounds share the rest.
popularity_share = 0.3

[training]
rounds = 4
local_steps = 1
# Chance of each unit to be in one step.
sample_rate = 1.0
# One unit's influence on a round. Noise is a multiple of it, so it costs nothing to change.
max_grad_norm = 0.2
# The norms of the first rounds, whose directions are random yet.
first_norms = [0.06, 0.14]
batch_normalizer = 100.0
learning_rate = 1.0
# Half the weight of a record after so many days; 0: all records weigh the same.
half_life_days = 0.0
# A run that goes on from an earlier model (`train --from`) learns from records since that model's
# day alone; false: from all of them.
only_new = true
# The popularity release and the first `tuning_share` of the rounds leave out the last
# `validation_days` before today; with 0 nothing does.
tuning_share = 0.0
validation_days = 0

[training.model]
dimension = 4
# What has learned rows: the values of a product column or of several, such as "category*brand".
# "auto": type*brand where the catalogue has both columns, else its finest feature that fits into
# learned_items; "": single products.
groups = "auto"
learned_items = 600

[server]
server_optimizer = "subspace"
server_momentum = 1.0
# A run begins when so many shops are connected, and waits wait_seconds for them at most.
min_shops = 2
wait_seconds = 600.0
# The share of the asked shops that must answer well, or a round keeps the old model.
quorum = 0.5
clients_per_round = 1.0
# How long one exchange waits for a shop.
timeout_seconds = 3600.0
# Refuse updates of a larger norm; 0: take all.
max_update_norm = 0.0
# Against shops that send poison: "tail-aware" bounds what each shop does to each product; also
# "median", "trimmed-mean", "krum", "multi-krum", "norm-bound", and "none". bad_share is the largest
# share of shops that may be bad. It takes min_shops = 3 at least, krum and multi-krum 5, and as
# many more as clients_per_round leaves out of a round.
defence = "none"
bad_share = 0.25
# Ask shops for noisy figures of the finished model; those with [evaluation] in their shop.toml give
# them, at a price that they set themselves. `train --evaluate` asks once.
evaluate = false
# Send the finished model to every shop, in one last message that costs no budget.
send_home = true
seed = 0
"""
