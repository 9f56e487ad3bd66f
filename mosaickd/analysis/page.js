// The page's charts, the slider of sample pictures, and reloading of a page that is served.

// Colours are the style sheet's, light or dark.
function theme() {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const [ink, muted, grid] = ["--ink", "--muted", "--grid"].map(colour);
  const axis = { labelColor: muted, titleColor: muted, gridColor: grid, domainColor: muted, tickColor: muted };
  return {
    background: "transparent",
    font: "system-ui, sans-serif",
    view: { stroke: null },
    axis: { ...axis, titleFontWeight: "normal" },
    header: { labelColor: ink, labelFontSize: 11 },
    legend: { labelColor: ink, titleColor: muted, titleFontWeight: "normal", labelLimit: 140 },
    rule: { color: muted },
    range: {
      category: [0, 1, 2, 3, 4, 5, 6, 7].map((i) => colour(`--line${i}`)),
      heatmap: [colour("--band"), colour("--line1")],
    },
  };
}

// Draw the charts that can be seen: those of a folded run once it is unfolded. `ast`: expressions are
// interpreted, as the page's policy forbids to compile them.
function draw() {
  const waiting = [...document.querySelectorAll("[data-spec]")].filter(
    (node) => !node.dataset.drawn && !node.closest("details.run:not([open])"),
  );
  return Promise.all(
    waiting.map((node) => {
      node.dataset.drawn = "yes";
      const spec = JSON.parse(document.getElementById(node.dataset.spec).textContent);
      const options = { ast: true, actions: false, defaultStyle: false, renderer: "svg", config: theme() };
      return vegaEmbed(node, spec, options);
    }),
  );
}

function redraw() {
  for (const node of document.querySelectorAll("[data-drawn]")) delete node.dataset.drawn;
  draw();
}

// ---------------------------------------------------------------- the slider

function showStep(frames) {
  const slider = frames.querySelector("input");
  const pictures = [...frames.querySelectorAll("figure")];
  pictures.forEach((picture, i) => (picture.hidden = i !== Number(slider.value)));
  const step = pictures[slider.value].dataset.step;
  frames.querySelector("output").textContent = step;
  slider.setAttribute("aria-valuetext", `step ${step}`);
}

function setUpSliders() {
  for (const frames of document.querySelectorAll(".frames")) {
    const slider = frames.querySelector("input");
    if (!slider) continue;
    frames.querySelector(".control").hidden = false;
    slider.addEventListener("input", () => showStep(frames));
    showStep(frames);
  }
}

// ---------------------------------------------------------------- a page that is served

const PAUSE = 2000; // milliseconds between two questions whether something has changed

async function watch() {
  const status = document.getElementById("live");
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, PAUSE));
    if (document.hidden) continue;
    try {
      const answer = await fetch("/", { method: "HEAD", cache: "no-store" });
      if (answer.headers.get("ETag") !== `"${document.body.dataset.version}"`) return reload();
      status.textContent = "Kept up to date.";
    } catch {
      status.textContent = "The server doesn't answer: this is what it said last.";
    }
  }
}

// Remember what is unfolded, which step is shown, and how far the page is scrolled.
function reload() {
  const open = [...document.querySelectorAll("details[open]")].map((part) => part.id);
  const sliders = [...document.querySelectorAll(".frames input")]
    .filter((slider) => slider.value !== slider.max)
    .map((slider) => [slider.id, slider.value]);
  sessionStorage.setItem("place", JSON.stringify({ open, sliders, scroll: window.scrollY }));
  location.reload();
}

async function restore() {
  const place = JSON.parse(sessionStorage.getItem("place") || "null");
  sessionStorage.removeItem("place");
  for (const id of place ? place.open : []) document.getElementById(id)?.setAttribute("open", "");
  for (const [id, value] of place ? place.sliders : []) {
    const slider = document.getElementById(id);
    if (slider) slider.value = value;
  }
  setUpSliders();
  await draw();
  if (place) window.scrollTo(0, place.scroll);
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
document.addEventListener("toggle", draw, true);
restore();
if (document.body.dataset.version) watch();
