// The federation over its rounds: released figures, and a simulation's report.

import Alpine from "./vendor/alpine-csp-3.17.4.min.js";
import { ask, told } from "./api.js";
import { colour, dark, draw } from "./charts.js";
import { epsilon } from "./models.js";
import { atMost, has, known, number, percent, t, whole } from "./text.js";

const FIGURES = ["ndcg@20", "tail_ndcg@20", "popularity_ndcg@20", "popularity_tail_ndcg@20"];
const METRICS = ["ndcg@20", "tail_ndcg@20", "coverage@20", "tail_share@20", "gini@20"];
const FIFTHS = ["1", "2", "3", "4", "5"];
const COLOURS = {
  popularity: "#8f8f8f", local: "#5b7fb4", "home-only": "#8fb3d9", centralized: "",
  federated: "#1a9a61", "federated-global": "#8ccfae", "federated-dp": "#d9622f", "federated-dp-global": "#e9a98f",
};

const colourOf = (arm) => COLOURS[arm] || colour("ink");
const line = (arm, x, y, more = {}) => ({
  x, y, name: arm, type: "scatter", mode: "lines+markers", connectgaps: true,
  line: { color: colourOf(arm), ...more }, marker: { color: colourOf(arm), size: 7 },
});

export function federation() {
  return {
    figureNames: FIGURES,
    metricNames: METRICS,
    epsilon,
    models: [],
    evaluations: [],
    report: null,
    loaded: false,
    init() {
      Alpine.effect(() => {
        if (this.$store.ui.ready && this.$store.ui.view === "federation") queueMicrotask(() => this.load());
      });
      Alpine.effect(() => {
        const { view, lang } = this.$store.ui;
        const drawn = [view, lang, dark(), this.report];
        if (drawn[0] === "federation" && this.report) this.$nextTick(() => this.drawAll());
      });
    },
    async load() {
      const found = await told(() => Promise.all(["models", "evaluations", "report"].map((path) => ask(`v1/${path}`))));
      if (!found) return;
      this.models = found[0].models;
      this.evaluations = found[1].evaluations;
      this.report = found[2].report;
      this.loaded = true;
    },

    /** Versions with released figures, beside what the registry says of them. */
    released() {
      return this.evaluations.filter((row) => row.released)
        .map((row) => ({ ...row, model: this.models.find((model) => model.version === row.version) ?? {} }));
    },
    figure(found) {
      return found ? `${number(found.mean, 3)} ± ${number(found.error, 3)}` : t("released.hidden");
    },

    arms() {
      return this.report ? Object.entries(this.report.arms).map(([arm, found]) => ({ name: arm, ...found })) : [];
    },
    armWords(arm) {
      return has(`arm.${arm}`) ? t(`arm.${arm}`) : "";
    },
    metric(arm, metric) {
      const value = arm.metrics[metric];
      if (metric === "gini@20") return number(value, 3);
      return metric.includes("ndcg") ? number(value) : percent(value, 1);
    },
    armEpsilon(arm) {
      return arm.privacy ? atMost(arm.privacy.epsilon) : t("none");
    },
    reportWords() {
      if (!this.report) return "";
      const { data, seed } = this.report;
      return t("report.words", { source: data.source, shops: whole(data.shops), customers: whole(data.customers), products: whole(data.products), seed });
    },
    verdict() {
      if (!this.report) return "";
      const { verdict } = this.report.answer;
      const arm = this.report.answer.arm ? this.report.arms[this.report.answer.arm] : null;
      const promise = arm?.privacy ? t("verdict.with", { epsilon: atMost(arm.privacy.epsilon), unit: known("unit_means", arm.privacy.unit) }) : t("verdict.without");
      return t(`verdict.${verdict}`, { promise });
    },

    /** What is drawn: title, words, and the same as a table. */
    charts() {
      if (!this.report) return [];
      const rounds = Object.entries(this.report.rounds);
      const arms = this.arms();
      const found = [];
      if (rounds.length) {
        found.push(this.chart("quality", [t("report.arm"), t("round"), "ndcg@20", "tail_ndcg@20"],
          rounds.flatMap(([arm, points]) => points.filter((point) => point["ndcg@20"] !== null)
            .map((point) => [arm, point.round, number(point["ndcg@20"]), number(point["tail_ndcg@20"])]))));
        const spent = rounds.filter(([, points]) => points.some((point) => point.epsilon !== null));
        if (spent.length) {
          found.push(this.chart("spent", [t("report.arm"), t("round"), "ε"],
            spent.flatMap(([arm, points]) => points.map((point) => [arm, point.round, atMost(point.epsilon)]))));
        }
      }
      if (arms.some((arm) => arm.quintiles["ndcg@20"])) {
        found.push(this.chart("fifths", [t("report.arm"), ...FIFTHS.map((fifth) => t(`fifth.${fifth}`))],
          arms.map((arm) => [arm.name, ...(arm.quintiles["ndcg@20"] ?? []).map((value) => number(value, 5))])));
      }
      found.push(this.chart("exposure", [t("report.arm"), t("metric.coverage@20"), t("metric.tail_share@20"), t("metric.gini@20")],
        arms.map((arm) => [arm.name, percent(arm.metrics["coverage@20"], 1), percent(arm.metrics["tail_share@20"], 1), number(arm.metrics["gini@20"], 3)])));
      return found;
    },
    chart(id, head, rows) {
      return { id, title: t(`chart.${id}`), words: t(`chart.${id}.words`), table: { head, rows } };
    },

    drawAll() {
      for (const element of this.$root.querySelectorAll("[data-chart]")) {
        draw(element, ...this[element.dataset.chart]());
      }
    },
    quality() {
      const traces = Object.entries(this.report.rounds).flatMap(([arm, points]) => ["ndcg@20", "tail_ndcg@20"]
        .map((metric) => ({
          ...line(arm, points.map((point) => point.round), points.map((point) => point[metric]), { dash: metric === "ndcg@20" ? "solid" : "dot" }),
          name: `${arm} ${metric}`,
        })));
      return [traces, { xaxis: { title: { text: t("round") }, tickformat: "d" }, yaxis: { rangemode: "tozero" } }];
    },
    spent() {
      const traces = Object.entries(this.report.rounds).filter(([, points]) => points.some((point) => point.epsilon !== null))
        .map(([arm, points]) => line(arm, points.map((point) => point.round), points.map((point) => point.epsilon)));
      return [traces, { showlegend: true, xaxis: { title: { text: t("round") }, dtick: 1 }, yaxis: { title: { text: "ε" }, rangemode: "tozero" } }];
    },
    fifths() {
      const traces = this.arms().map((arm) => line(arm.name, FIFTHS.map((fifth) => t(`fifth.${fifth}`)), (arm.quintiles["ndcg@20"] ?? []).map((value) => value || null)));
      return [traces, { yaxis: { type: "log", dtick: 1, exponentformat: "none", title: { text: "ndcg@20" } } }];
    },
    exposure() {
      const arms = this.arms().reverse();
      const traces = ["tail_share@20", "coverage@20"].map((metric, place) => ({
        type: "bar", orientation: "h", name: t(`metric.${metric}`),
        y: arms.map((arm) => arm.name), x: arms.map((arm) => arm.metrics[metric]),
        marker: { color: place ? colour("more") : colour("less") },
      }));
      return [traces, { barmode: "group", xaxis: { tickformat: ".0%" }, legend: { orientation: "h", y: 1.02, yanchor: "bottom", traceorder: "reversed" } }];
    },
  };
}
