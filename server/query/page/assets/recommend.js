// The basket, what is recommended for it, and why.

import Alpine from "./vendor/alpine-csp-3.17.4.min.js";
import { ask, told } from "./api.js";
import { asked, decimals, has, label, name, number, percent, t, whole } from "./text.js";

const NO_FILTERS = { category: "", brand: "", price_from: "", price_to: "", merchant_id: "" };
const NUMBERS = ["price_from", "price_to"];
const DIAL_WAIT = 120;
/** A part that is smaller, beside the largest, is not worth a word. */
const WEIGHTY = 0.005;

export function recommend() {
  return {
    query: "",
    found: [],
    total: 0,
    choices: null,
    filters: { ...NO_FILTERS },
    k: 20,
    dial: 0,
    answer: null,
    reasons: {},
    similar: {},
    customer: "",
    roomy: matchMedia("(min-width: 56rem)").matches,
    busy: false,
    asked: 0,
    searched: 0,
    timer: 0,

    init() {
      Alpine.effect(() => {
        if (this.$store.ui.ready) queueMicrotask(() => this.load());
      });
      Alpine.effect(() => {
        // Read here: the list follows the basket, wherever it was changed.
        const history = JSON.stringify(this.history());
        if (this.$store.ui.ready && history) queueMicrotask(() => this.ask());
      });
    },
    async load() {
      this.choices = (await told(() => ask("v1/choices"))) ?? this.choices;
      await this.search();
    },

    async search() {
      const number = ++this.searched;
      const query = encodeURIComponent(this.query);
      const answer = await told(() => ask(`v1/products?limit=30&query=${query}`));
      if (!answer || number !== this.searched) return;
      this.found = answer.products;
      this.total = answer.total;
    },
    foundWords() {
      const key = this.query.trim() ? "search.found" : "search.popular";
      return this.found.length || this.total ? t(key, { n: this.found.length, total: whole(this.total) }) : t("search.none");
    },

    /** By keyboard, past the thirty buttons of what was found. */
    toBasket() {
      document.getElementById("basket-title").focus();
    },

    where() {
      return this.$store.ui.about?.where ?? "federation";
    },
    behaviors() {
      return this.choices ? Object.keys(this.choices.behaviors).filter((behavior) => behavior !== "rating") : ["purchase"];
    },
    holds(entry) {
      return this.$store.basket.holds(entry.item_id);
    },
    add(entry) {
      if (this.holds(entry)) return;
      this.$store.basket.add(entry);
      this.$store.ui.said = t("basket.added", { name: label(entry) });
    },
    behave(item, behavior) {
      item.behavior = behavior;
    },
    remove(item) {
      const basket = this.$store.basket;
      basket.items = basket.items.filter((other) => other.item_id !== item.item_id);
      this.$store.ui.said = t("basket.removed", { name: label(item) });
      // The button that was pressed is gone: go on at the basket.
      document.getElementById("query").focus();
    },
    clear() {
      this.$store.basket.items = [];
      document.getElementById("query").focus();
    },
    reset() {
      this.filters = { ...NO_FILTERS };
      this.k = 20;
      this.ask();
    },

    /** What a question says of the customer; only a shop's own service knows them by number. */
    whom() {
      const customer = this.where() === "shop" ? this.customer.trim() : "";
      return { history: this.history(), ...(customer ? { user_id: customer } : {}) };
    },
    notes() {
      return this.answer?.notes ?? [];
    },
    history() {
      const weights = this.choices?.behaviors ?? {};
      return this.$store.basket.items.map((item) => ({ item_id: asked(item), weight: weights[item.behavior] ?? 1 }));
    },
    turn() {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.ask(), DIAL_WAIT);
    },
    async ask() {
      const number = ++this.asked;
      const filters = Object.fromEntries(Object.entries(this.filters)
        .filter(([, value]) => value !== "" && value !== null)
        .map(([name, value]) => [name, NUMBERS.includes(name) ? Number(value) : value]));
      const k = Math.min(100, Math.max(1, Math.round(Number(this.k)) || 20));
      // Of more than are shown the field does not keep saying that they are.
      if (Number(this.k) > k) this.k = k;
      const body = { ...this.whom(), k, tail_dial: Number(this.dial), filters };
      this.busy = true;
      const answer = await told(() => ask("v1/recommend", body), "list");
      if (number !== this.asked) return;
      this.busy = false;
      if (!answer) return;
      const inList = document.querySelector("ol.list").contains(document.activeElement);
      this.answer = answer;
      // What had the focus may be listed no more, as a product that was added: go on at the list.
      this.$nextTick(() => {
        if (inList && document.activeElement === document.body) {
          document.getElementById("results-title").focus({ preventScroll: true });
        }
      });
      this.$store.basket.recommended = answer.items.map(({ item_id: id, product }) => ({ item_id: id, product }));
      this.$store.ui.said = `${this.resultsTitle()}. ${this.effect()}`;
      if (this.choices && this.choices.version !== answer.version) this.load();
      // Reasons that are open follow the basket.
      const listed = new Set(answer.items.map((item) => item.item_id));
      for (const open of [this.reasons, this.similar]) {
        Object.keys(open).filter((id) => !listed.has(id)).forEach((id) => delete open[id]);
      }
      await Promise.all(answer.items.filter((item) => this.reasons[item.item_id]).map((item) => this.explain(item)));
    },
    resultsTitle() {
      if (!this.answer) return t("results.waiting");
      const basket = this.$store.basket.items.length ? "results.title" : "results.anyone";
      const key = this.answer.known_customer ? "results.customer" : basket;
      return t(key, { n: this.answer.items.length, version: this.answer.version });
    },
    dialWords() {
      return t("dial.value", { value: percent(this.dial) });
    },
    effect() {
      if (!this.answer) return "";
      return t("dial.effect", {
        now: percent(this.answer.tail_share),
        plain: percent(this.answer.tail_share_undialled),
        kept: percent(this.answer.score_kept),
      });
    },
    score(value) {
      return number(value, decimals(this.answer.items.map((item) => item.score)));
    },

    async why(item) {
      if (this.reasons[item.item_id]) {
        delete this.reasons[item.item_id];
        return;
      }
      await this.explain(item);
    },
    async explain(item) {
      const whom = this.whom();
      const found = await told(() => ask("v1/explain", { item_id: asked(item), ...whom }));
      // The basket may have changed meanwhile: these are the reasons of another list.
      if (found && JSON.stringify(whom) !== JSON.stringify(this.whom())) await this.explain(item);
      else if (found) this.reasons[item.item_id] = found;
    },
    /** What a part of a score stands for; products of the basket by their names. */
    partWords(part) {
      const item = this.$store.basket.items.find((other) => other.item_id === part.label);
      const words = item ? label(item) : part.label;
      const where = part.kind === "popularity" ? `part.popularity.${part.label}` : "";
      if (where && has(where)) return t(where);
      return has(`part.${part.kind}`) ? t(`part.${part.kind}`, { label: words, n: parseInt(part.label, 10) }) : words;
    },
    whyWords(item) {
      const found = this.reasons[item.item_id];
      if (!found) return "";
      const weighty = (part) => part.kind !== "rest" && Math.abs(part.value) > WEIGHTY * this.scale(item);
      const gravest = found.parts.filter(weighty).slice(0, 3)
        .map((part) => `${this.partWords(part)} (${this.signed(item, part.value)})`);
      return t("why.words", { name: name(item), score: this.value(item, found.score), parts: gravest.join(t("why.comma")) });
    },
    places(item) {
      const found = this.reasons[item.item_id];
      // Small parts, too, show where they go.
      return Math.max(4, decimals([found.score, ...found.parts.map((part) => part.value)]));
    },
    value(item, value) {
      return number(value, this.places(item)).replace("-", "−");
    },
    signed(item, value) {
      return `${value < 0 ? "−" : "+"}${number(Math.abs(value), this.places(item))}`;
    },
    scale(item) {
      return Math.max(...this.reasons[item.item_id].parts.map((part) => Math.abs(part.value)), 1e-12);
    },
    barWidth(item, part) {
      return this.reasons[item.item_id] ? (50 * Math.abs(part.value)) / this.scale(item) : 0;
    },
    barStart(item, part) {
      return part.value < 0 ? 50 - this.barWidth(item, part) : 50;
    },

    async alike(item) {
      if (this.similar[item.item_id]) {
        delete this.similar[item.item_id];
        return;
      }
      const found = await told(() => ask("v1/similar", { item_id: asked(item), k: 10 }));
      if (found) this.similar[item.item_id] = found.items;
    },
  };
}
