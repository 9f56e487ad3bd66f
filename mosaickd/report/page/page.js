// The slider of sample grids, and pages that a server keeps up to date. The page is whole without.
"use strict";

// ---------------------------------------------------------------- the slider

function setUp(root) {
  for (const frames of root.querySelectorAll("[data-frames]")) {
    const slider = frames.querySelector("input[type=range]");
    if (!slider) continue;
    frames.querySelector(".control").hidden = false;
    slider.addEventListener("input", () => show(frames, slider));
    show(frames, slider);
  }
}

function show(frames, slider) {
  const steps = slider.dataset.steps.split(" ");
  const step = steps[slider.value];
  for (const frame of frames.querySelectorAll(".frame")) {
    frame.hidden = frame.dataset.step !== step;
  }
  frames.querySelector("output").textContent = Number(step).toLocaleString("en");
  slider.setAttribute("aria-valuetext", `step ${step} of ${slider.dataset.end}`);
  mark(frames.closest("details.run") || frames.closest("main"), Number(step));
}

// Where the slider's step lies in the run's curves.
function mark(run, step) {
  for (const chart of run.querySelectorAll("svg[data-plot]")) {
    const [left, right, top, bottom, last] = chart.dataset.plot.split(" ").map(Number);
    let line = chart.querySelector(".mark");
    if (!line) {
      line = document.createElementNS("http://www.w3.org/2000/svg", "path");
      line.setAttribute("class", "mark");
      chart.prepend(line);
    }
    const x = left + (right - left) * Math.min(1, step / last);
    line.setAttribute("d", `M${x} ${top}V${bottom}`);
  }
}

// ---------------------------------------------------------------- a page that stays up to date

const PAUSE = 1000; // milliseconds between two questions to the server

async function watch() {
  const status = document.getElementById("live");
  status.hidden = false;
  status.textContent = "Kept up to date.";
  let lost = false;
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, PAUSE));
    if (document.hidden) continue; // nobody looks
    try {
      const version = await ask("version");
      if (version !== document.documentElement.dataset.version) {
        replace(await ask("./"));
        status.textContent = `Updated at ${new Date().toLocaleTimeString()}.`;
      } else if (lost) {
        status.textContent = "Kept up to date.";
      }
      lost = false;
      status.setAttribute("aria-live", "off"); // not to be read out each second
    } catch {
      status.setAttribute("aria-live", "polite");
      if (!lost) status.textContent = "The server doesn't answer: this is what it said last.";
      lost = true;
    }
  }
}

async function ask(what) {
  const answer = await fetch(what, { cache: "no-store" });
  if (!answer.ok) throw new Error(answer.status);
  return answer.text();
}

// Show a newer page, where its reader was: sliders, what is unfolded, what has the focus, and how far
// it is scrolled. A slider at its end stays at the end.
function replace(text) {
  const next = new DOMParser().parseFromString(text, "text/html");
  const main = document.querySelector("main");
  const kept = next.querySelector("main");
  const focus = document.activeElement && document.activeElement.id;
  const across = [...main.querySelectorAll(".scroll, pre")].map((part) => part.scrollLeft);
  for (const old of main.querySelectorAll("details[data-key]")) {
    const same = unfolded(kept, keyOf(old));
    if (same) same.open = old.open;
  }
  for (const old of main.querySelectorAll("input[type=range]")) {
    const same = kept.querySelector(`#${old.id}`);
    if (!same || old.value === old.max) continue;
    const place = same.dataset.steps.split(" ").indexOf(old.dataset.steps.split(" ")[old.value]);
    if (place >= 0) same.value = place;
  }
  const { scrollX, scrollY } = window;
  main.replaceWith(kept);
  setUp(kept);
  [...kept.querySelectorAll(".scroll, pre")].forEach((part, i) => (part.scrollLeft = across[i] || 0));
  if (focus) document.getElementById(focus)?.focus({ preventScroll: true });
  window.scrollTo(scrollX, scrollY);
  document.title = next.title;
  document.documentElement.dataset.version = next.documentElement.dataset.version;
}

// Of a folded part: the run that it is in, and its own name there.
function keyOf(part) {
  const run = part.parentElement.closest("details.run");
  return `${run ? run.dataset.key : ""}/${part.dataset.key}`;
}

function unfolded(root, key) {
  return [...root.querySelectorAll("details[data-key]")].find((part) => keyOf(part) === key);
}

setUp(document);
if (document.documentElement.dataset.version) watch();
