// The registry's versions and what each promises.

import Alpine from "./vendor/alpine-csp-3.17.4.min.js";
import { ask, patiently, told } from "./api.js";
import { atMost, known, percent, rounded, t } from "./text.js";

// The tree's names of features, as common/features.py and server/query/model_tree.py give them.
const CROSS = "*";
const POPULARITY = "popularity";

export const epsilon = (model) => (model.private ? atMost(model.epsilon) : t("models.not_private"));
export const delta = (value) => (value === null || value === undefined ? t("none") : value.toExponential().replace("e", "·10^").replace("^-", "⁻").replace(/⁻(\d+)/, (_, power) => `⁻${[...power].map((digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit]).join("")}`).replace(/^1·/, ""));

/** The answers of a tree in the page's words, each with all that leads to it, and where in the list. */
function* rulesOf(nodes, place = 0, within = new Map()) {
  const node = nodes[place];
  if (!node.feature) {
    const when = [...within].map(([feature, edges]) => range(feature, ...edges)).join(t("tree.and"));
    yield [node.best_share, t("tree.rule", { best: rounded(node.best_share, "percent"), when: when || t("tree.any") })];
    return;
  }
  const [low, high] = within.get(node.feature) ?? [-Infinity, Infinity];
  yield* rulesOf(nodes, node.yes, new Map(within).set(node.feature, [node.threshold, high]));
  yield* rulesOf(nodes, node.no, new Map(within).set(node.feature, [low, node.threshold]));
}

function range(feature, low, high) {
  const popular = feature === POPULARITY;
  const edge = (value) => rounded(value, popular ? "decimal" : "percent");
  const between = low === -Infinity ? t("tree.at_most", { high: edge(high) })
    : high === Infinity ? t("tree.above", { low: edge(low) }) : t("tree.between", { low: edge(low), high: edge(high) });
  return t(popular ? "tree.popular" : "tree.content", { between, feature: feature.split(CROSS).map((part) => known("column", part)).join(t("tree.with")) });
}

export function models() {
  return {
    epsilon,
    delta,
    models: [],
    statement: null,
    tree: null,
    init() {
      Alpine.effect(() => {
        if (this.$store.ui.ready && this.$store.ui.view === "models") queueMicrotask(() => this.load());
      });
    },
    async load() {
      this.models = (await told(() => ask("v1/models")))?.models ?? this.models;
    },
    /** Asks for the served model's rules when they are first looked at. */
    async grow(open) {
      if (open) this.tree = (await told(() => patiently("v1/models/0/tree"))) ?? this.tree;
    },
    fidelity() {
      if (!this.tree) return t("tree.waiting");
      const { top_20_overlap: overlap, top_20_by_popularity: popularity, profiles } = this.tree.fidelity;
      return t("tree.fidelity", { overlap: percent(overlap), popularity: percent(popularity), n: profiles });
    },
    rules() {
      // The best products' first, as the command line has them.
      return this.tree ? [...rulesOf(this.tree.nodes)].sort((one, other) => one[0] - other[0]).map(([, words]) => words) : [];
    },
    async read(model) {
      if (this.statement?.version === model.version) {
        this.statement = null;
        return;
      }
      this.statement = (await told(() => ask(`v1/models/${model.version}/privacy`))) ?? null;
      if (!this.statement) return;
      // What was hidden is shown with the next frame, and takes the focus only then.
      await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
      document.getElementById("statement").focus();
      document.getElementById("statement").scrollIntoView({ block: "nearest" });
    },
    /** Closes the statement; the button that was pressed is gone: go on at the one that opened it. */
    close() {
      const button = document.getElementById(`statement-of-${this.statement.version}`);
      this.statement = null;
      button?.focus();
    },
    /** The statement's main points in the page's language; its own words stand below. */
    lines() {
      const found = this.statement?.statement;
      if (!found) return [];
      if (!found.private) return [t("statement.none")];
      const promise = found.epsilon === null ? t("statement.no_bound") : t("statement.promise", { epsilon: atMost(found.epsilon), delta: delta(found.delta), unit: known("unit_means", found.unit) });
      return [
        promise,
        known("trust_means", found.trust),
        known("noise_means", found.noise),
        t("statement.rounds", { n: found.rounds }),
        t("statement.several_shops"),
        t("statement.not_covered"),
      ];
    },
  };
}
