// Starts the page: stores, views by the address's hash, the frame around them.

import Alpine from "./vendor/alpine-csp-3.17.4.min.js";
import { ask, setKey, told } from "./api.js";
import { federation } from "./federation.js";
import { models } from "./models.js";
import { productMap } from "./map.js";
import { recommend } from "./recommend.js";
import { detail, known, label, loadTables, name, number, percent, preferred, t, when } from "./text.js";

const VIEWS = ["recommend", "models", "federation", "map"];

// Of what is kept between visits only these two: no basket, no key.
const kept = (name, fallback) => {
  try {
    return localStorage.getItem(`fedtail.${name}`) ?? fallback;
  } catch {
    return fallback;
  }
};
const keep = (name, value) => {
  try {
    localStorage.setItem(`fedtail.${name}`, value);
  } catch {
    // A browser that keeps nothing forgets the language, too.
  }
};

const viewOf = () => (VIEWS.includes(location.hash.slice(1)) ? location.hash.slice(1) : VIEWS[0]);

function shell() {
  return {
    views: VIEWS,
    key: "",
    keyWrong: false,
    init() {
      addEventListener("hashchange", () => {
        this.$store.ui.view = viewOf();
        this.said();
        document.getElementById("main").focus();
      });
      Alpine.effect(() => {
        const ui = this.$store.ui;
        document.documentElement.lang = ui.lang === "zh" ? "zh-CN" : "en";
        document.documentElement.dataset.theme = ui.theme;
        document.title = `${t(`nav.${ui.view}`)} · ${t("title")}`;
        keep("lang", ui.lang);
        keep("theme", ui.theme);
      });
      addEventListener("again", () => this.start());
      this.start();
    },
    async start() {
      const about = await told(() => ask("v1/about"));
      if (!about) {
        this.keyWrong = this.$store.ui.keyNeeded && Boolean(this.key);
        return;
      }
      this.keyWrong = false;
      this.key = "";
      this.$store.ui.keyNeeded = false;
      this.$store.ui.about = about;
      this.$store.ui.ready += 1;
    },
    async useKey() {
      setKey(this.key);
      await this.start();
      // The form that had the focus is gone.
      if (!this.$store.ui.keyNeeded) document.getElementById("main").focus();
    },
    said() {
      this.$store.ui.said = t(`nav.${this.$store.ui.view}`);
    },
    skip() {
      document.getElementById("main").focus();
    },
    subtitle() {
      const about = this.$store.ui.about;
      if (!about) return t("subtitle");
      return about.where === "shop" ? t("subtitle.shop", { shop: about.merchant_id ?? "" }) : t("subtitle.federation");
    },
  };
}

await loadTables();
const media = matchMedia("(prefers-color-scheme: dark)");
Alpine.store("ui", {
  lang: kept("lang", preferred()),
  theme: kept("theme", "auto"),
  systemDark: media.matches,
  view: viewOf(),
  ready: 0,
  about: null,
  keyNeeded: false,
  problem: "",
  /** What the problem is a refusal of, where that matters. */
  refused: "",
  said: "",
});
media.addEventListener("change", () => {
  Alpine.store("ui").systemDark = media.matches;
});
Alpine.store("basket", {
  items: [],
  /** The last recommendations, which the map shows, too. */
  recommended: [],
  holds(itemId) {
    return this.items.some((item) => item.item_id === itemId);
  },
  add(entry) {
    if (!this.holds(entry.item_id)) {
      this.items.push({
        item_id: entry.item_id, own_item_ids: entry.own_item_ids ?? [], product: { ...entry.product }, behavior: "purchase",
      });
    }
  },
});
Alpine.magic("t", () => t);
const words = { detail, known, label, name, number, percent, when };
// Every view has the words; methods of its own come on top.
for (const [view, make] of Object.entries({ shell, recommend, models, federation, productMap })) {
  Alpine.data(view, () => ({ ...words, ...make() }));
}
Alpine.start();
