// Asks the REST interface of the service that the page came from, and nobody else.

import Alpine from "./vendor/alpine-csp-3.17.4.min.js";
import { t } from "./text.js";

/** The service's own words while it has no model. */
const NO_MODEL = "no model can be served yet";
const LOOK_SECONDS = 3;

// The key lives in this variable alone: closing the page forgets it.
let key = "";

export function setKey(text) {
  key = text.trim();
}

export class Refused extends Error {
  /** `passing`: there is no service just now, or no model yet. */
  constructor(status, text, passing = false) {
    super(text);
    this.status = status;
    this.passing = passing;
  }
}

/** Returns the answer to GET, or to POST where there is a body. */
export async function ask(path, body = undefined) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const request = { headers, cache: "no-store", credentials: "omit", referrerPolicy: "no-referrer" };
  if (body !== undefined) {
    request.method = "POST";
    request.body = JSON.stringify(body);
    headers["Content-Type"] = "application/json";
  }
  let answer;
  try {
    answer = await fetch(path, request);
  } catch {
    throw new Refused(0, t("problem.away"), true);
  }
  const found = await answer.json().catch(() => ({}));
  if (answer.ok) return found;
  const passing = found.error === NO_MODEL;
  const words = passing ? t("problem.no_model") : { 429: t("problem.many") }[answer.status];
  throw new Refused(answer.status, words ?? t("problem.refused", { words: found.error ?? answer.status }), passing);
}

/** Asks again after some seconds as long as the service says that it is busy with this very thing. */
export async function patiently(path, seconds = 5, tries = 24) {
  for (let left = tries; ; left -= 1) {
    try {
      return await ask(path);
    } catch (error) {
      if (error.status !== 429 || left <= 1) throw error;
      await new Promise((done) => setTimeout(done, seconds * 1000));
    }
  }
}

let looking = 0;

/** Tells the page when the service can answer: else it would say that it can't until somebody acts. */
function lookOut() {
  clearTimeout(looking);
  looking = setTimeout(async () => {
    const well = await fetch("healthz", { cache: "no-store" }).then((answer) => answer.ok, () => false);
    if (well) dispatchEvent(new Event("again"));
    else lookOut();
  }, LOOK_SECONDS * 1000);
}

/**
 * Runs some work that asks; what goes wrong is told at the top of what is seen. A refusal of what
 * is named in `about` stays until that is asked for with success: what is shown of it is older.
 */
export async function told(work, about = "") {
  const ui = Alpine.store("ui");
  try {
    const found = await work();
    if (!ui.refused || ui.refused === about) ui.problem = ui.refused = "";
    return found;
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (error.status === 401) ui.keyNeeded = true;
    else {
      ui.problem = error.message;
      if (error.passing) lookOut();
      ui.refused = error.status === 422 ? about : "";
    }
    return undefined;
  }
}
