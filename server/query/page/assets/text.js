// Words, numbers and dates in the language that was chosen.

import Alpine from "./vendor/alpine-csp-3.17.4.min.js";

const LANGUAGES = ["en", "zh"];
const LOCALES = { en: "en", zh: "zh-CN" };
const tables = {};

export async function loadTables() {
  await Promise.all(LANGUAGES.map(async (lang) => {
    tables[lang] = await (await fetch(`page/strings/${lang}.json`)).json();
  }));
}

export function preferred() {
  const wanted = navigator.languages.map((tag) => tag.slice(0, 2).toLowerCase());
  return wanted.find((tag) => LANGUAGES.includes(tag)) ?? "en";
}

const lang = () => Alpine.store("ui").lang;
const locale = () => LOCALES[lang()];

/** Whether there are words for a key. */
export const has = (key) => key in tables[lang()];

/**
 * The words for a key; an unknown key is shown, so that it is found. {name} is replaced by its
 * value, {name|one|many} by the word for as many.
 */
export function t(key, values = {}) {
  const words = tables[lang()][key] ?? key;
  const counted = words.replace(/\{(\w+)\|(.*?)\|(.*?)\}/g, (_, name, one, many) => (String(values[name]) === "1" ? one : many));
  return counted.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? values[name] : whole));
}

/** What the page has words for in them, and anything else as it is. */
export const known = (kind, value) => {
  if (value === null || value === undefined || value === "") return t("none");
  return has(`${kind}.${value}`) ? t(`${kind}.${value}`) : String(value);
};

export const number = (value, digits = 4) => (typeof value === "number" && Number.isFinite(value)
  ? value.toLocaleString(locale(), { minimumFractionDigits: digits, maximumFractionDigits: digits })
  : t("none"));
export const whole = (value) => number(value, 0);
/** An ε in four digits that are not below it, as the command lines have it. */
export const atMost = (value) => (typeof value === "number"
  ? value.toLocaleString(locale(), { maximumSignificantDigits: 4, roundingMode: "ceil" }) : t("none"));
export const percent = (value, digits = 0) => (value === null || value === undefined ? t("none")
  : Number(value).toLocaleString(locale(), { style: "percent", minimumFractionDigits: digits, maximumFractionDigits: digits }));
/** To two significant digits. */
export const rounded = (value, style) => value.toLocaleString(locale(), { style, maximumSignificantDigits: 2, useGrouping: false });
export const when = (text) => new Date(text).toLocaleString(locale(), { dateStyle: "medium", timeStyle: "short" });

/** How many decimals show four places of the largest of some values. */
export function decimals(values) {
  const largest = Math.max(...values.map(Math.abs), 1e-12);
  return Math.min(8, Math.max(1, 3 - Math.floor(Math.log10(largest))));
}

/** What a product is called: the first column that names it, or its number. */
export function name(entry) {
  const product = entry.product ?? {};
  return String(product.title ?? product.name ?? product.type ?? product.category ?? entry.item_id);
}

/** Its name with its number, where names repeat. */
export const label = (entry) => (name(entry) === entry.item_id ? name(entry) : `${name(entry)} (${entry.item_id})`);

/** The number that a question names it by: at a shop with numbers of its own, one of those. */
export const asked = (entry) => entry.own_item_ids?.[0] ?? entry.item_id;

/** Its other columns on one line. */
export function detail(entry) {
  const product = entry.product ?? {};
  const parts = [entry.item_id, product.category, product.brand, product.package_size].filter((text) => text && text !== name(entry));
  if (typeof product.price === "number") parts.push(number(product.price, 2));
  return parts.join(" · ");
}
