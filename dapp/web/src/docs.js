// The API's list, from its own OpenAPI document.
const list = document.getElementById("api");

function element(name, text, ...children) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  made.append(...children);
  return made;
}

async function show() {
  const { paths } = await (await fetch("/api/v1/openapi.json")).json();
  for (const [path, methods] of Object.entries(paths)) {
    for (const [method, about] of Object.entries(methods)) {
      const given = (about.parameters ?? []).map((p) => element("li", `${p.name} (${p.in}${p.required ? "" : ", may be left out"}): ${p.description ?? p.schema?.type ?? ""}`));
      const what = element("summary", "", element("code", `${method.toUpperCase()} ${path}`), ` ${about.summary ?? ""}`);
      const one = element("details", "", what, element("ul", "", ...given));
      if (method === "get" && !path.includes("{") && !given.length) {
        const link = element("a", "open");
        link.href = path;
        one.append(link);
      }
      list.append(one);
    }
  }
}

if (list) show();
