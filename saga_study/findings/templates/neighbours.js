// The page of nearest neighbours: choose a query by mouse, keys or filter; its neighbours are shown for each method.
"use strict";
const content = JSON.parse(document.getElementById("content").textContent);
const $ = (id) => document.getElementById(id);
const right = (query, method) => query.lists[method][0][2] === 1;
const filters = [["all", () => true]];
content.methods.forEach((a, i) => content.methods.forEach((b, j) => {
  if (i !== j) filters.push([`${a} right, ${b} wrong`, (q) => right(q, i) && !right(q, j)]);
}));
if (content.methods.length > 1) filters.push(["every method right", (q) => q.lists.every((_, m) => right(q, m))]);
filters.push(["no method right", (q) => q.lists.every((_, m) => !right(q, m))]);
filters.push([`no method has a hit among ${content.k}`, (q) => q.lists.every((list) => list.every((n) => !n[2]))]);
let shown = [], chosen = -1;

function element(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function picture(place, text) {
  return element("img", { src: content.thumbnails[place], alt: text });
}

function choose(number, focus) {
  chosen = number;
  for (const button of $("strip").children) {
    const is = Number(button.dataset.query) === number;
    button.setAttribute("aria-selected", is);
    button.tabIndex = is ? 0 : -1;
    if (is && focus) button.focus();
  }
  $("query").replaceChildren();
  $("methods").replaceChildren();
  if (number < 0) return;
  const query = content.queries[number];
  $("query").append(picture(query.image, `query, ${query.class}`),
    element("p", {}, element("strong", {}, query.class), document.createElement("br"), `query ${query.number} of the test images`));
  query.lists.forEach((list, method) => {
    const hits = list.filter((n) => n[2]).length;
    const row = element("div", { class: "method", style: `--k: ${list.length}` },
      element("h2", {}, content.methods[method], element("span", {}, `${hits} of ${list.length} of its class`)));
    list.forEach(([place, similarity, hit, name, differs], rank) => {
      const mark = hit ? "✓" : "✗";
      const caption = element("figcaption", {}, element("b", {}, `${mark} ${similarity.toFixed(3)}`), document.createElement("br"), name);
      if (differs) caption.append(element("small", {}, differs));
      row.append(element("figure", { class: hit ? "hit" : "miss" },
        picture(place, `neighbour ${rank + 1}, ${hit ? "same class" : "other class"}, ${name}`), caption));
    });
    $("methods").append(row);
  });
  history.replaceState(null, "", `#${query.number}`);
}

function filter(keep) {
  const test = filters[$("filter").selectedIndex][1];
  shown = content.queries.map((_, i) => i).filter((i) => test(content.queries[i]));
  $("strip").replaceChildren(...shown.map((i) => {
    const query = content.queries[i];
    const named = { "data-query": i, "aria-label": `query ${query.number}, ${query.class}` };
    const button = element("button", { type: "button", role: "option", ...named }, picture(query.image, ""));
    button.addEventListener("click", () => choose(i, true));
    return button;
  }));
  $("count").textContent = `${shown.length} of ${content.queries.length} queries`;
  choose(shown.includes(keep) ? keep : shown.length ? shown[0] : -1, false);
}

$("strip").addEventListener("keydown", (event) => {
  const at = shown.indexOf(chosen), last = shown.length - 1;
  const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: last }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  choose(shown[Math.max(0, Math.min(last, to))], true);
});
filters.forEach(([name]) => $("filter").append(element("option", {}, name)));
$("filter").addEventListener("change", () => filter(chosen));
const linked = content.queries.findIndex((query) => `#${query.number}` === location.hash);
filter(Math.max(0, linked));
