"use strict";
// Rollouts of a step: sort by a column, filter by what the form says.
for (const section of document.querySelectorAll("section.rollouts")) {
  const body = section.querySelector("tbody"), form = section.querySelector("form"), said = section.querySelector("output");
  let sorted = "", sign = -1;
  for (const button of section.querySelectorAll("button[data-sort]")) {
    button.addEventListener("click", () => {
      const key = button.dataset.sort;
      sign = key === sorted ? -sign : -1;
      sorted = key;
      const value = row => { const x = Number(row.dataset[key]); return Number.isNaN(x) ? -Infinity : x; };
      body.append(...[...body.rows].sort((a, b) => sign * (value(a) - value(b)) || a.dataset.row - b.dataset.row));
    });
  }
  const filter = () => {
    const said_of = name => form.elements[name].value, bound = (name, none) => said_of(name) === "" ? none : Number(said_of(name));
    const text = said_of("text").toLowerCase();
    let shown = 0;
    for (const row of body.rows) {
      const { reward, length, truncated, flags } = row.dataset;
      const low = bound("low", -Infinity), high = bound("high", Infinity);
      const fits = !(Number(reward) < low || Number(reward) > high)  // a reward that is no number is never hidden
        && Number(length) >= bound("short", 0) && Number(length) <= bound("long", Infinity)
        && (!form.elements.truncated.checked || truncated === "1") && (!form.elements.flagged.checked || flags !== "0")
        && (text === "" || row.querySelector(".turns").textContent.toLowerCase().includes(text));
      row.hidden = !fits;
      shown += row.hidden ? 0 : 1;
    }
    said.textContent = shown + " shown";
  };
  form.addEventListener("input", filter);
  form.addEventListener("submit", event => event.preventDefault());
}
// Tokens of a sample: colour by a field; say all numbers of the one that is pointed at.
for (const section of document.querySelectorAll("section.sample")) {
  const data = JSON.parse(section.querySelector("script.data").textContent);
  const spans = [...section.querySelectorAll(".tokens span")], select = section.querySelector("select.field");
  const paint = () => {
    const values = data.fields[select.value] || [], sizes = values.filter(x => x !== null).map(Math.abs);
    const most = Math.max(...sizes, 1e-12);
    spans.forEach((span, i) => {
      const x = values[i];
      const alpha = x === null || x === undefined ? 0 : Math.min(1, Math.abs(x) / most) * 0.75;
      span.style.backgroundColor = alpha === 0 ? "" : `rgba(${x > 0 ? "22,163,74" : "220,38,38"},${alpha.toFixed(3)})`;
    });
    section.querySelector(".legend").textContent = sizes.length ? `green to +${most.toPrecision(3)}, red to −${most.toPrecision(3)}` : "";
  };
  const tell = event => {
    const i = spans.indexOf(event.target);
    if (i < 0) return;
    const numbers = Object.entries(data.fields).filter(([, values]) => values[i] !== null).map(([name, values]) => `${data.names[name]} ${values[i]}`);
    const who = event.target.className === "chosen" ? "chosen by the policy" : "given, outside the action mask";
    section.querySelector(".told").textContent = `token ${i}, id ${data.ids[i]} ${JSON.stringify(event.target.textContent)}: ${who}  ${numbers.join("  ")}`;
  };
  select.addEventListener("change", paint);
  section.querySelector(".tokens").addEventListener("mouseover", tell);
  section.querySelector(".tokens").addEventListener("focusin", tell);
  paint();
}
// The overview of a run that goes on.
const overview = document.getElementById("overview");
if (overview && document.body.dataset.live === "yes") {
  setInterval(async () => {
    const answer = await fetch("/state").catch(() => null);
    if (!answer || !answer.ok) return;
    const now = document.getElementById("overview");
    if (JSON.stringify(await answer.json()) === JSON.stringify(JSON.parse(now.dataset.state))) return;
    const page = await fetch("/").then(each => each.text());
    const next = new DOMParser().parseFromString(page, "text/html").getElementById("overview");
    now.querySelectorAll("details").forEach((each, i) => {
      const same = next.querySelectorAll("details")[i];
      if (same) same.open = each.open;
    });
    now.replaceWith(next);
  }, 3000);
}
