"use strict";
// Shows and filters the samples that stand as JSON in the page (posttrain/harness/embed.py says how). What a model
// wrote becomes text nodes and nothing else. Only one page of questions is in the document at a time.
(() => {
  const TASK = 0, ID = 1, QUESTION = 2, GOLD = 3, CHANGE = 4, SIDES = 5, PICTURES = 6, LOW = 7;
  const NUMBER = 0, TEXT = 1, TOKENS = 2, FINISH = 3, JUDGED = 4, FOUND = 5, START = 6, END = 7, NOTE = 8,
    ALIKE = 9, CUTS = 10, LOWER = 11;
  const CSS = ["right", "wrong", "open", "failed"];
  const SIGN = ["✓ ", "✗ ", "○ ", "! "];
  const CHANGES = { gained: "became right", lost: "became wrong" };
  const MARKS = 200; // hits marked in one completion
  const WAIT = 180; // ms after the last key before a search begins

  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const form = byId("filters"), list = byId("list"), pages = byId("pages"), all = byId("all");
  let shown = [], page = 0, open = false, term = "", timer = 0;

  const make = (tag, css, ...inside) => {
    const made = document.createElement(tag);
    if (css) made.className = css;
    made.append(...inside);
    return made;
  };

  // --- filters ---

  const ticked = (name) => {
    const boxes = [...form.querySelectorAll(`input[name=${name}]`)];
    return boxes.length ? new Set(boxes.filter((box) => box.checked).map((box) => box.value)) : null;
  };

  // Lower-case copies are made at the first search and kept.
  const inQuestion = (q) => {
    q[LOW] ??= [q[ID], q[QUESTION], q[GOLD] ?? ""].join("\n").toLowerCase();
    return q[LOW].includes(term);
  };
  const inSample = (s) => (s[LOWER] ??= [s[TEXT], s[NOTE]].join("\n").toLowerCase()).includes(term);

  const filter = () => {
    const task = form.task?.value ?? "", finish = form.finish.value;
    const verdicts = ticked("verdict"), changes = ticked("change");
    term = form.text.value.trim().toLowerCase();
    shown = [];
    let samples = 0;
    for (const q of data.questions) {
      if (task !== "" && q[TASK] !== Number(task)) continue;
      if (changes && !changes.has(q[CHANGE])) continue;
      const whole = term === "" || inQuestion(q);
      const sides = q[SIDES].map((side) => side.filter((s) =>
        (!verdicts || verdicts.has(String(s[JUDGED]))) && (finish === "" || s[FINISH] === finish) &&
        (whole || inSample(s))));
      const count = sides.reduce((sum, side) => sum + side.length, 0);
      if (!count) continue;
      samples += count;
      // Two evaluations stand side by side: a question that is found shows both.
      shown.push([q, data.sides.length > 1 ? q[SIDES] : sides]);
    }
    const word = (n, one) => `${n.toLocaleString("en")} ${one}${n === 1 ? "" : "s"}`;
    const questions = word(shown.length, "question");
    byId("count").textContent = data.sides.length > 1 ? questions : `${word(samples, "sample")} of ${questions}`;
    turn(0);
  };

  const turn = (to) => {
    const last = Math.max(0, Math.ceil(shown.length / data.page) - 1);
    page = Math.min(Math.max(0, to), last);
    const from = page * data.page, now = shown.slice(from, from + data.page);
    list.replaceChildren(...now.map(article));
    if (!now.length) list.append(make("p", "empty", "No sample is like that."));
    pages.hidden = last === 0;
    byId("where").textContent = shown.length
      ? `${(from + 1).toLocaleString("en")}–${(from + now.length).toLocaleString("en")} of ${shown.length.toLocaleString("en")}`
      : "";
    for (const button of document.querySelectorAll("button.previous")) button.disabled = page === 0;
    for (const button of document.querySelectorAll("button.next")) button.disabled = page === last;
  };

  // --- one question ---

  const article = ([q, sides]) => {
    const name = data.tasks.length > 1 ? `${data.tasks[q[TASK]]} · ` : "";
    const title = make("h3", "id", name, make("bdi", "", q[ID]));
    if (q[CHANGE]) title.append(" ", make("span", `badge ${q[CHANGE] === "gained" ? "right" : "wrong"}`, CHANGES[q[CHANGE]]));
    const text = make("pre", "", q[QUESTION] || "(its question is not in rows.jsonl)");
    text.dir = "auto";
    const asked = make("div", "asked", title, text);
    const head = make("div", "question", asked);
    if (q[GOLD] !== null) head.append(make("p", "gold", "answer ", make("b", "", make("bdi", "", q[GOLD]))));
    if (q[PICTURES]) head.prepend(make("div", "pictures", ...q[PICTURES].map(picture)));
    const made = make("article", "sample", head);
    const columns = make("div", data.sides.length > 1 ? "sides" : "one-side");
    // Of two sides the samples that make the change are opened, else the first one.
    const wanted = { gained: [1, 0], lost: [0, 1] }[q[CHANGE]] ?? [];
    sides.forEach((side, i) => columns.append(column(side, q[SIDES][i], data.sides[i], wanted[i])));
    made.append(columns);
    return made;
  };

  const picture = (place) => {
    const made = make("img", "looked");
    made.src = data.pictures[place];
    made.alt = "The question's picture";
    return made;
  };

  const column = (side, every, label, wanted) => {
    const judged = every.filter((s) => s[JUDGED] < 2), right = judged.filter((s) => s[JUDGED] === 0).length;
    const tally = make("p", "tally");
    if (label) tally.append(make("b", "", make("bdi", "", label)), " ");
    if (every.length > 1) {
      const dots = make("span", "dots");
      dots.setAttribute("aria-hidden", "true");
      dots.append(...every.map((s) => make("i", `dot ${CSS[s[JUDGED]]}`)));
      tally.append(dots, judged.length ? ` ${right} of ${judged.length} right` : " none is judged");
      if (side.length < every.length) tally.append(` · ${side.length} shown`);
    }
    const made = make("div", "column", ...(tally.childNodes.length ? [tally] : []));
    const first = Math.max(0, side.findIndex((s) => s[JUDGED] === wanted));
    side.forEach((s, i) => made.append(sample(s, every.length > 1, open || i === first)));
    if (!side.length) made.append(make("p", "empty", "no sample"));
    return made;
  };

  const sample = (s, several, opened) => {
    const line = make("summary", "", make("span", `badge ${CSS[s[JUDGED]]}`, SIGN[s[JUDGED]] + data.judged[s[JUDGED]]));
    if (s[FOUND] !== null) line.append(make("bdi", "found", s[FOUND].length > 80 ? `${s[FOUND].slice(0, 80)}…` : s[FOUND]));
    if (s[ALIKE] > 1) line.append(make("span", "alike", `×${s[ALIKE]}`));
    const facts = several ? [`sample ${s[NUMBER]}`] : [];
    if (s[TOKENS] !== null) facts.push(`${s[TOKENS].toLocaleString("en")} tokens`);
    if (s[FINISH] === "length") facts.push("cut off");
    line.append(make("span", "facts-line", facts.join(" · ")));
    const made = make("details", "completion", line);
    const fill = () => {
      if (!made.open || made.childNodes.length > 1) return;
      if (s[NOTE]) made.append(make("p", "why", s[NOTE]));
      const text = make("pre");
      text.dir = "auto";
      text.tabIndex = 0;
      text.setAttribute("role", "region");
      text.setAttribute("aria-label", `Completion, sample ${s[NUMBER]}`);
      write(text, s);
      made.append(text);
      // The answer is what one looks for: the box begins there where it is long.
      const mark = text.querySelector(term ? "mark.hit" : "mark.answer") ?? text.querySelector("mark");
      if (mark) requestAnimationFrame(() => { text.scrollTop = mark.offsetTop - text.clientHeight / 2; });
    };
    made.addEventListener("toggle", fill);
    made.open = opened;
    fill();
    return made;
  };

  // The completion with its answer and the hits of the search marked, and a word where it was shortened.
  const write = (place, s) => {
    const text = s[TEXT];
    if (!text) return void place.append(make("span", "empty", "nothing"));
    const marks = s[START] >= 0 ? [[s[START], s[END], "answer"]] : [];
    if (term) {
      const hit = new RegExp(term.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"), "gi");
      for (let n = 0, found; n < MARKS && (found = hit.exec(text)); n++) {
        const [from, to] = [found.index, found.index + found[0].length];
        if (!marks.length || to <= s[START] || from >= s[END]) marks.push([from, to, "hit"]);
      }
    }
    for (const [at, left] of s[CUTS]) marks.push([at, at, left]);
    marks.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
    let at = 0;
    for (const [from, to, what] of marks) {
      if (from < at) continue; // it overlaps the one before
      place.append(text.slice(at, from));
      place.append(typeof what === "number"
        ? make("span", "cut", `\n… ${what.toLocaleString("en")} characters are not shown …\n`)
        : make("mark", what, text.slice(from, to)));
      at = to;
    }
    place.append(text.slice(at));
  };

  // --- what people do ---

  const soon = () => { clearTimeout(timer); timer = setTimeout(filter, WAIT); };
  form.addEventListener("input", (event) => (event.target.name === "text" ? soon() : filter()));
  form.addEventListener("submit", (event) => { event.preventDefault(); clearTimeout(timer); filter(); });
  const step = (by, low) => {
    turn(page + by);
    if (low) byId("samples").scrollIntoView();
  };
  for (const button of document.querySelectorAll("button.previous"))
    button.addEventListener("click", () => step(-1, pages.contains(button)));
  for (const button of document.querySelectorAll("button.next"))
    button.addEventListener("click", () => step(1, pages.contains(button)));
  all.addEventListener("click", () => {
    open = !open;
    all.setAttribute("aria-pressed", String(open));
    turn(page);
  });
  form.hidden = false;
  filter();
})();
