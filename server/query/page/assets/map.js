// The product map: what lies together goes together; the basket stands out.

import Alpine from "./vendor/alpine-csp-3.17.4.min.js";
import { patiently, told } from "./api.js";
import { colour, dark, draw } from "./charts.js";
import { detail, known, label, t, whole } from "./text.js";

const MOST = 3000;
const INCLUDED = 60;
/** Twenty groups that can be told apart, by day and by night. */
const PALETTE = [
  "#4c78a8", "#f58518", "#54a24b", "#e45756", "#72b7b2", "#b279a2", "#eeca3b", "#9d755d", "#ff9da6", "#79706e",
  "#88d27a", "#d67195", "#439894", "#d6a5c9", "#83bcb6", "#f2cf5b", "#9ecae9", "#ffbf79", "#bab0ac", "#fcbfd2",
];

/** Words of the catalogue as words: plotly.js would make links and bold letters of some. */
const escape = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

export function productMap() {
  return {
    map: null,
    asked: 0,
    group: "",
    chosen: null,
    plotly: null,
    init() {
      Alpine.effect(() => {
        const { ready, view } = this.$store.ui;
        const shown = JSON.stringify(this.marked());
        if (ready && view === "map" && shown) queueMicrotask(() => this.load());
      });
      Alpine.effect(() => {
        const { view, lang } = this.$store.ui;
        const drawn = [lang, dark(), this.map];
        if (view === "map" && drawn[2]) this.$nextTick(() => this.draw());
      });
    },
    marked() {
      const basket = this.$store.basket;
      return [...basket.items, ...basket.recommended].slice(0, INCLUDED).map((item) => item.item_id);
    },
    async load() {
      const wanted = this.marked().map((id) => `&include=${encodeURIComponent(id)}`).join("");
      const number = ++this.asked;
      const found = await told(() => patiently(`v1/models/0/map?most=${MOST}${wanted}`));
      if (found && number === this.asked) this.map = found;
    },
    groups() {
      return this.map?.groups ?? [];
    },
    groupLabel() {
      return this.map?.column ? t("map.group", { column: known("column", this.map.column) }) : t("map.group.none");
    },
    mapWords() {
      if (!this.map) return t("map.waiting");
      const basket = this.$store.basket;
      return t("map.drawn", {
        n: whole(this.map.item_ids.length), of: whole(this.map.catalogue_products),
        basket: basket.items.length, recommended: basket.recommended.length,
      });
    },
    holds(entry) {
      return this.$store.basket.holds(entry.item_id);
    },
    add(entry) {
      this.$store.basket.add(entry);
      this.$store.ui.said = t("basket.added", { name: label(entry) });
    },

    entry(place) {
      const group = this.map.groups[this.map.group[place]]?.value ?? null;
      return { item_id: this.map.item_ids[place], own_item_ids: this.map.own_item_ids[place], product: { title: this.map.titles[place], category: group } };
    },
    /** A trace of some places; its points know which they are. */
    trace(places, more) {
      return {
        type: "scatter", mode: "markers", hoverinfo: "text", customdata: places,
        x: places.map((place) => this.map.x[place]), y: places.map((place) => this.map.y[place]),
        text: places.map((place) => `${escape(label(this.entry(place)))}<br>${escape(detail(this.entry(place)))}`),
        ...more,
      };
    },
    async draw() {
      if (!this.map) return;
      const map = Alpine.raw(this.map);
      const places = map.item_ids.map((_, place) => place);
      const faded = (code) => this.group && map.groups[code]?.value !== this.group;
      const codes = [...map.groups.keys(), -1];
      const traces = codes.map((code) => this.trace(places.filter((place) => map.group[place] === code), {
        name: code < 0 ? t("map.others") : escape(map.groups[code].value),
        marker: { color: code < 0 ? colour("soft") : PALETTE[code], size: 5, opacity: faded(code) ? 0.08 : 0.65 },
      })).filter((trace) => trace.x.length);
      const basket = new Set(this.$store.basket.items.map((item) => item.item_id));
      const recommended = new Set(this.$store.basket.recommended.map((item) => item.item_id));
      traces.push(this.trace(places.filter((place) => recommended.has(map.item_ids[place]) && !basket.has(map.item_ids[place])), {
        name: t("map.recommended"),
        legendrank: 2,
        marker: { symbol: "diamond", size: 11, color: colour("paper"), line: { width: 2.5, color: colour("accent") } },
      }));
      traces.push(this.trace(places.filter((place) => basket.has(map.item_ids[place])), {
        name: t("map.basket"),
        legendrank: 1, // First in a list that may be longer than a phone has room for; drawn last.
        marker: { symbol: "star", size: 18, color: colour("less"), line: { width: 1.5, color: colour("paper") } },
      }));
      const element = document.getElementById("product-map");
      const bare = { showgrid: false, zeroline: false, showline: false, showticklabels: false };
      const narrow = element.clientWidth < 700;
      this.plotly = await draw(element, traces, {
        xaxis: bare, yaxis: { ...bare, scaleanchor: "x" }, margin: { l: 4, r: 4, t: 4, b: 4 }, hovermode: "closest",
        legend: narrow ? { orientation: "h", y: -0.02, yanchor: "top", font: { size: 11 } } : { orientation: "v", x: 1.01, y: 1 },
        // A finger scrolls the page; the buttons move the map.
        dragmode: matchMedia("(pointer: coarse)").matches ? false : "pan",
        uirevision: "map",
      }, { scrollZoom: true });
      if (!element.dataset.listens) {
        element.dataset.listens = "yes";
        element.on("plotly_click", (event) => {
          this.chosen = this.entry(event.points[0].customdata);
        });
      }
    },
    /** Shows a larger or smaller part around the middle; 0: all of it. */
    async zoom(factor) {
      const element = document.getElementById("product-map");
      if (!this.plotly || !element.layout) return;
      if (!factor) {
        await this.plotly.relayout(element, { "xaxis.autorange": true, "yaxis.autorange": true });
        return;
      }
      await this.show((low, high) => [(low + high) / 2, ((high - low) / 2) * factor]);
    },
    /** Shows what lies a third of the picture to the right and above. */
    async move(right, up) {
      await this.show((low, high, axis) => [(low + high) / 2 + ((high - low) / 3) * (axis === "xaxis" ? right : up), (high - low) / 2]);
    },
    /** Changes both axes to what `part` makes of their ends: a middle, and half a length. */
    async show(part) {
      const element = document.getElementById("product-map");
      if (!this.plotly || !element.layout) return;
      const change = {};
      for (const axis of ["xaxis", "yaxis"]) {
        const [middle, half] = part(...element.layout[axis].range, axis);
        change[`${axis}.range[0]`] = middle - half;
        change[`${axis}.range[1]`] = middle + half;
      }
      await this.plotly.relayout(element, change);
    },
  };
}
