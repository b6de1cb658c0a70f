"use strict";
// Choose a label for each clip; what was chosen becomes a CSV that `prepare annotations=` takes.
const clips = Array.from(document.querySelectorAll("figure[data-uri]"));
const download = document.getElementById("download");
const progress = document.getElementById("progress");
let saved = true;

function labelOf(clip) {
  return clip.querySelector("input").value.trim();
}

function show() {
  const done = clips.filter(labelOf);
  for (const clip of clips) {
    clip.classList.toggle("labelled", labelOf(clip) !== "");
    for (const button of clip.querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(button.dataset.label === labelOf(clip)));
    }
  }
  progress.textContent = `${done.length} of ${clips.length} labelled`;
  download.disabled = done.length === 0;
}

function choose(clip, label) {
  const input = clip.querySelector("input");
  input.value = labelOf(clip) === label ? "" : label;
  changed();
}

function changed() {
  saved = false;
  show();
}

function quoted(text) {
  return `"${text.replaceAll('"', '""')}"`;
}

function csv() {
  const rows = clips.filter(labelOf).map((clip) =>
    [quoted(clip.dataset.uri), quoted(labelOf(clip)), clip.dataset.start, clip.dataset.end].join(","));
  return ["path,label,start_seconds,end_seconds", ...rows, ""].join("\n");
}

function save() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
  link.download = "annotations.csv";
  link.click();
  URL.revokeObjectURL(link.href);
  saved = true;
}

for (const clip of clips) {
  clip.querySelector("input").addEventListener("input", changed);
  for (const button of clip.querySelectorAll("button")) {
    button.addEventListener("click", () => choose(clip, button.dataset.label));
  }
}
download.addEventListener("click", save);
window.addEventListener("beforeunload", (event) => {
  if (!saved) event.preventDefault();
});
show();
