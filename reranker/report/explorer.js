// The explorer of the test queries. It only searches, sorts and shows what explorer.py has decided and packed; texts
// reach the page through textContent alone. Without it, or where a browser cannot read the data, the table of the
// largest losses stays.
(async () => {
  "use strict";
  const PAGE = 50;
  const byId = (id) => document.getElementById(id);

  async function unpack(base64) {
    const binary = atob(base64.trim());
    const bytes = new Uint8Array(binary.length);
    for (let place = 0; place < binary.length; place++) bytes[place] = binary.charCodeAt(place);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return JSON.parse(await new Response(stream).text());
  }

  function element(name, properties = {}, ...children) {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  }

  await new Promise((painted) => requestAnimationFrame(() => setTimeout(painted)));
  const data = await unpack(byId("queries-data").textContent);
  const [passageIds, passageTexts] = data.passages;
  const queries = data.queries.map(([id, text, ndcg, reason, retriever, reranker, relevant, relevantNumber]) => ({
    id, text, ndcg, reason: data.reasons[reason], retriever, reranker, relevant, relevantNumber,
  }));
  const places = new Map(queries.map((query, place) => [query.id, place]));
  const words = { query: null, passage: null };  // in small letters, made at the first search
  let found = [];  // places of the queries that are listed
  let page = 0;
  let against = data.retriever;

  const gain = (query) => query.ndcg[data.reranker] - query.ndcg[against];
  const outcome = (difference) => (difference > 0 ? "won" : difference < 0 ? "lost" : "tied");
  const signed = (difference) => {
    const size = (Math.abs(difference) / data.unit).toFixed(3);
    return (difference > 0 ? "+" : difference < 0 ? "−" : "±") + size;
  };

  /** Whether each query has every word of the search, in its text or in a passage that is shown with it. */
  function matches(search) {
    const terms = search.toLowerCase().split(/\s+/).filter(Boolean);
    if (!terms.length) return () => true;
    words.query ??= queries.map((query) => query.text.toLowerCase());
    words.passage ??= passageTexts.map((text) => text.toLowerCase());
    const inPassages = terms.map((term) => Uint8Array.from(words.passage, (text) => text.includes(term)));
    return (query, place) => terms.every((term, number) => {
      const marked = inPassages[number];
      const has = ([passage]) => marked[passage];
      return words.query[place].includes(term)
        || query.reranker.some(has) || query.retriever.some(has) || query.relevant.some(has);
    });
  }

  function filter() {
    against = Number(byId("against").value);
    const wanted = byId("outcome").value;
    const order = byId("order").value;
    const matching = matches(byId("search").value);
    const counts = { won: 0, lost: 0, tied: 0 };
    found = [];
    queries.forEach((query, place) => {
      if (!matching(query, place)) return;
      const difference = gain(query);
      counts[outcome(difference)]++;
      if (wanted === "all" || wanted === outcome(difference)) found.push([difference, place]);
    });
    if (order === "losses") found.sort(([a, first], [b, second]) => a - b || first - second);
    if (order === "gains") found.sort(([a, first], [b, second]) => b - a || first - second);
    found = found.map(([, place]) => place);
    page = 0;
    const total = counts.won + counts.lost + counts.tied;
    const counted = (number) => number.toLocaleString("en");
    byId("found").textContent = `${counted(found.length)} shown. Of ${counted(total)} queries`
      + `${byId("search").value.trim() ? " with these words" : ""}: ${counted(counts.won)} won, `
      + `${counted(counts.lost)} lost, ${counted(counts.tied)} tied.`;
    list();
  }

  function list() {
    const first = page * PAGE;
    byId("list").replaceChildren(...found.slice(first, first + PAGE).map((place) => {
      const query = queries[place];
      const difference = gain(query);
      const link = element("a", { href: `#q=${encodeURIComponent(query.id)}` },
        element("span", { className: `change ${outcome(difference)}`, textContent: signed(difference) }), " ",
        element("span", { className: "hidden", textContent: `${outcome(difference)}: ` }),
        element("bdi", { textContent: query.text }));
      if (query.reason && difference < 0) link.append(element("span", { className: "reason", textContent: query.reason }));
      return element("li", {}, link);
    }));
    const last = Math.max(Math.ceil(found.length / PAGE) - 1, 0);
    byId("page").textContent = found.length
      ? `${first + 1} to ${Math.min(first + PAGE, found.length)} of ${found.length.toLocaleString("en")}` : "No query";
    byId("back").disabled = page === 0;
    byId("forth").disabled = page === last;
    byId("list").parentElement.scrollTop = 0;
    mark();
  }

  function ranking(title, hits, moved) {
    const rows = hits.map(([passage, score, other, judged], place) => element("li", {
      className: judged > 0 ? "relevant" : "",
    },
      element("p", { className: "hit" },
        element("b", { textContent: place + 1 }), " ",
        ...(judged > 0 ? [element("span", { className: "badge", textContent: "✓ relevant" }), " "] : []),
        ...(judged < 0 ? [element("span", { className: "badge wrong", textContent: "✗ judged irrelevant" }), " "] : []),
        element("span", { className: "move", textContent: moved(place + 1, other) }),
        element("span", { className: "score", textContent: score })),
      ...text(passage)));
    return element("section", {},
      element("h4", { textContent: title }), element("ol", { className: "hits" }, ...rows));
  }

  const text = (passage) => [
    element("p", {}, element("bdi", { textContent: passageTexts[passage] })),
    element("code", { className: "passage-id", textContent: passageIds[passage] }),
  ];

  function cameFrom(rank, before) {
    if (!before) return "new";
    const moved = before === rank ? "=" : before > rank ? `▲${before - rank}` : `▼${rank - before}`;
    return before > 10 ? `new, ${moved} from ${before}` : moved;
  }

  const goesTo = (_, after) => (after ? `→ ${after}` : "→ out");

  function show(query) {
    const difference = gain(query);
    const figures = data.systems.map((system, place) =>
      element("li", {}, `${system} `, element("b", { textContent: (query.ndcg[place] / data.unit).toFixed(3) })));
    const relevant = query.relevant.map(([passage, first, second]) => element("li", {},
      element("p", { className: "hit" }, first || second
        ? `Retriever: rank ${first}; reranker: rank ${second}` : "Not retrieved"),
      ...text(passage)));
    if (query.relevantNumber > query.relevant.length) {
      relevant.push(element("li", { textContent: `and ${query.relevantNumber - query.relevant.length} more` }));
    }
    byId("chosen").replaceChildren(
      element("h3", { id: "chosen-title", tabIndex: -1 }, element("bdi", { textContent: query.text })),
      element("p", {},
        element("span", { className: `change ${outcome(difference)}`, textContent: signed(difference) }),
        ` NDCG@10 against ${data.systems[against]}: ${outcome(difference)}. Query `, element("code", { textContent: query.id })),
      ...(query.reason ? [element("p", { className: "guess", textContent: `A guess at why no relevant passage is first: ${query.reason}.` })] : []),
      element("div", { className: "sides" },
        ranking(`${data.systems[data.retriever]}, top ${query.retriever.length}`, query.retriever, goesTo),
        ranking(`${data.systems[data.reranker]}, top ${query.reranker.length}`, query.reranker, cameFrom)),
      element("h4", { textContent: query.relevantNumber === 1 ? "The relevant passage" : "Relevant passages" }),
      element("ul", { className: "hits" }, ...relevant),
      element("h4", { textContent: "NDCG@10 of every system" }),
      element("ul", { className: "figures" }, ...figures));
  }

  function chosenId() {
    const asked = /^#q=(.*)$/.exec(location.hash);
    try {
      return asked && decodeURIComponent(asked[1]);
    } catch {
      return asked[1];
    }
  }

  /** Mark the chosen query in the list. */
  function mark() {
    const id = chosenId();
    for (const link of byId("list").querySelectorAll("a")) {
      if (id !== null && link.hash === `#q=${encodeURIComponent(id)}`) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  }

  /** Show the query that the address names, else the first of the list. */
  function choose() {
    const id = chosenId();
    const place = id === null ? found[0] : places.get(id);
    if (place !== undefined) show(queries[place]);
    else byId("chosen").replaceChildren(id === null ? "" : element("p", { textContent: `No test query has the id ${id}.` }));
    mark();
  }

  /** The same, for a reader who follows a link to a query. */
  function arrive() {
    choose();
    if (chosenId() === null) return;
    byId("chosen-title")?.focus({ preventScroll: true });
    const { top } = byId("chosen").getBoundingClientRect();
    if (top < 0 || top > innerHeight / 2) byId("chosen").scrollIntoView();
  }

  function turn(by) {
    page += by;
    list();
    byId("list").querySelector("a")?.focus();
  }

  function refresh() {
    filter();
    choose();
  }

  for (const id of ["against", "outcome", "order"]) byId(id).addEventListener("change", refresh);
  byId("search").addEventListener("input", refresh);
  byId("worst").addEventListener("click", () => {
    byId("search").value = "";
    byId("against").value = data.retriever;
    byId("outcome").value = "lost";
    byId("order").value = "losses";
    refresh();
    byId("list").querySelector("a")?.focus();
  });
  byId("back").addEventListener("click", () => turn(-1));
  byId("forth").addEventListener("click", () => turn(1));
  byId("list").addEventListener("keydown", (event) => {
    const links = [...byId("list").querySelectorAll("a")];
    const at = links.indexOf(document.activeElement);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: links.length - 1 }[event.key];
    if (to === undefined || at < 0) return;
    event.preventDefault();
    links[Math.min(Math.max(to, 0), links.length - 1)].focus();
  });
  byId("chosen").addEventListener("keydown", (event) => {
    if (event.key === "Escape") (byId("list").querySelector("[aria-current]") ?? byId("search")).focus();
  });
  addEventListener("hashchange", arrive);

  byId("against").append(...data.systems
    .map((system, place) => element("option", { value: place, textContent: system }))
    .filter((_, place) => place !== data.reranker));
  byId("against").value = data.retriever;
  document.documentElement.classList.add("explorable");
  filter();
  arrive();
})();
