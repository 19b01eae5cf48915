// The page of rollouts: choose a moment of training and a pair; point at a token to see what it sends to which patch.
"use strict";
const content = JSON.parse(document.getElementById("content").textContent);
const $ = (id) => document.getElementById(id);
let moment = 0, pair = 0, held = null, norms = [];

function element(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

// What some tokens of an answer send to each patch of both images, 0 to 255; several are added.
function sent(answer, tokens) {
  const size = 2 * current().patches, sum = new Float32Array(size);
  for (const token of tokens) for (let i = 0; i < size; i++) sum[i] += norms[answer][token * size + i];
  return sum;
}

const current = () => content.rollouts[moment][pair];

function paint(answer, tokens, what) {
  const { patches, largest, advantages } = current(), side = Math.round(Math.sqrt(patches)), values = sent(answer, tokens);
  const most = tokens.length > 1 ? Math.max(...values, 1) : 255;
  document.querySelectorAll(".heat").forEach((heat, image) => {
    heat.style.gridTemplateColumns = `repeat(${side}, 1fr)`;
    heat.replaceChildren(...Array.from({ length: patches }, (_, i) => {
      const share = values[image * patches + i] / most;
      return element("i", { style: `opacity:${(0.85 * share).toFixed(3)}`, title: (share * (tokens.length > 1 ? most / 255 : 1) * largest).toExponential(1) });
    }));
  });
  const total = [0, 1].map((image) => values.slice(image * patches, (image + 1) * patches).reduce((a, b) => a + b, 0));
  const share = total[0] + total[1] ? Math.round(100 * total[0] / (total[0] + total[1])) : 50;
  $("said").textContent = `answer ${answer + 1}, ${what}: A = ${advantages[answer].toFixed(2)}, ${share} % to image a, ${100 - share} % to image b`;
}

function clear() {
  if (held) return held();
  document.querySelectorAll(".heat").forEach((heat) => heat.replaceChildren());
  $("said").textContent = "Point at a token to see what it sends to which patch.";
}

function show() {
  const shown = content.pairs[pair], rollouts = current();
  norms = rollouts.norms.map(bytes);
  held = null;
  document.querySelectorAll(".pair img").forEach((img, i) => { img.src = shown.images[i]; });
  document.querySelectorAll(".pair figcaption").forEach((text, i) => { text.textContent = `image ${"ab"[i]}: ${shown.classes[i]}`; });
  const right = rollouts.rewards.filter((reward) => reward).length;
  $("facts").replaceChildren(element("p", {}, element("strong", {}, shown.same ? "one class" : "two classes"),
    `, ${right} of ${rollouts.rewards.length} verdicts right` + (right && right < rollouts.rewards.length ? "" : ": all advantages are 0, nothing is sent")));
  if (shown.attributes.length) {
    $("facts").append(element("table", {}, ...shown.attributes.map(([name, a, b]) =>
      element("tr", a === b ? {} : { class: "differs" }, element("td", {}, name), element("td", {}, a), element("td", {}, a === b ? "" : b)))));
  }
  const size = 2 * rollouts.patches;
  const totals = norms.map((values, g) => rollouts.tokens[g].map((_, t) => values.subarray(t * size, (t + 1) * size).reduce((a, b) => a + b, 0)));
  const most = Math.max(1, ...totals.flat());
  $("answers").replaceChildren(...rollouts.tokens.map((tokens, g) => {
    const all = tokens.map((_, t) => t), advantage = rollouts.advantages[g];
    const head = element("button", { type: "button", class: "head", "aria-label": `all of answer ${g + 1}` },
      `${rollouts.rewards[g] ? "✓" : "✗"} A ${advantage < 0 ? "−" : "+"}${Math.abs(advantage).toFixed(2)}`);
    const line = element("div", { class: rollouts.rewards[g] ? "answer right" : "answer wrong" }, head);
    listen(head, g, all, "all tokens");
    tokens.forEach((text, t) => {
      const token = element("button", { type: "button", class: `token ${["", "true", "false"][rollouts.marks[g][t]]}`, style: `--sent:${(100 * totals[g][t] / most).toFixed(0)}%` }, text);
      listen(token, g, [t], `token ${t + 1} “${text.trim()}”`);
      line.append(token);
    });
    return line;
  }));
  clear();
}

function listen(button, answer, tokens, what) {
  const see = () => paint(answer, tokens, what);
  button.addEventListener("mouseenter", see);
  button.addEventListener("focus", see);
  button.addEventListener("mouseleave", clear);
  button.addEventListener("click", () => {
    const was = button.classList.contains("held");
    document.querySelectorAll(".held").forEach((other) => other.classList.remove("held"));
    held = was ? null : see;
    if (!was) button.classList.add("held");
    see();
  });
}

function choices(place, labels, chosen, choose) {
  $(place).replaceChildren(...labels.map((label, i) => {
    const button = element("button", { type: "button", role: "radio", "aria-checked": i === chosen() }, label);
    button.addEventListener("click", () => {
      choose(i);
      [...$(place).children].forEach((other, n) => other.setAttribute("aria-checked", n === i));
      history.replaceState(null, "", `#${moment}-${pair}`);
      show();
    });
    return button;
  }));
}

$("answers").addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key], lines = [...$("answers").children];
  const row = lines.findIndex((line) => line.contains(event.target));
  if (row < 0) return;
  const at = [...lines[row].children].indexOf(event.target);
  const down = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  const to = step ? lines[row].children[at + step] : down ? lines[row + down]?.children[Math.min(at, lines[row + down].children.length - 1)] : null;
  if (!to) return;
  event.preventDefault();
  to.focus();
});
addEventListener("hashchange", () => location.reload());
const linked = /^#(\d+)-(\d+)$/.exec(location.hash);
if (linked && content.rollouts[linked[1]]?.[linked[2]]) [moment, pair] = [Number(linked[1]), Number(linked[2])];
choices("moments", content.moments, () => moment, (i) => { moment = i; });
choices("pairs", content.pairs.map((one, i) => `pair ${i + 1}: ${one.same ? "one class" : "two classes"}`), () => pair, (i) => { pair = i; });
show();
