// plotly.js, loaded when the first picture is drawn; its colours are the page's.

import Alpine from "./vendor/alpine-csp-3.17.4.min.js";

// plotly.js writes the style sheet of its maps into the page unless this element is there. The
// page draws no such map, and its policy forbids the sheet.
const MAP_STYLE = "9f215cf04c5486422605d13261cb87401f4e7763b6296af81e98efbc0130da53";

let loading;

function load() {
  loading ??= new Promise((done, failed) => {
    const mark = document.createElement("meta");
    mark.id = MAP_STYLE;
    const script = document.createElement("script");
    script.src = "page/vendor/plotly.min.js";
    script.onload = () => done(window.Plotly);
    script.onerror = failed;
    document.head.append(mark, script);
  });
  return loading;
}

export const dark = () => {
  const ui = Alpine.store("ui");
  return ui.theme === "dark" || (ui.theme === "auto" && ui.systemDark);
};

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

const axis = () => ({
  gridcolor: colour("line"), linecolor: colour("line"), zerolinecolor: colour("line"), automargin: true,
});

/** Draws into an element; what was drawn there before makes room. */
export async function draw(element, traces, layout = {}, config = {}) {
  const plotly = await load();
  const whole = {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: colour("ink"), family: getComputedStyle(document.body).fontFamily, size: 13 },
    margin: { l: 48, r: 12, t: 8, b: 40 },
    legend: { orientation: "h", y: 1.02, yanchor: "bottom" },
    hoverlabel: { bgcolor: colour("paper"), bordercolor: colour("line"), font: { color: colour("ink") } },
    ...layout,
    xaxis: { ...axis(), ...layout.xaxis },
    yaxis: { ...axis(), ...layout.yaxis },
  };
  await plotly.react(element, traces, whole, { displayModeBar: false, responsive: true, ...config });
  return plotly;
}

export { colour };
