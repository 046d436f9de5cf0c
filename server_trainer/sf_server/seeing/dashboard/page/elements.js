// Making and changing elements. Text goes in as text only: what devices say of themselves is never markup.

const SVG = "http://www.w3.org/2000/svg";

export function byId(id) {
  const found = document.getElementById(id);
  if (found === null) throw new Error(`the page has no #${id}`);
  return found;
}

/** An HTML element; `inside` is a text or a list of elements and texts. */
export function element(name, attributes = {}, inside = []) {
  return filled(document.createElement(name), attributes, inside);
}

/** An SVG element. */
export function shape(name, attributes = {}, inside = []) {
  return filled(document.createElementNS(SVG, name), attributes, inside);
}

/** Changes a text only when it is another one: selections stay, and screen readers are not told again. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Changes an attribute only when it is another one; null takes it away. */
export function setAttribute(node, name, value) {
  if (value === null) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

/** Gives a list as many children as there are items: `make` makes one, `update` fills it. */
export function fillList(parent, items, make, update) {
  while (parent.children.length > items.length) parent.lastElementChild.remove();
  while (parent.children.length < items.length) parent.append(make());
  items.forEach((item, index) => update(parent.children[index], item));
}

function filled(node, attributes, inside) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...(Array.isArray(inside) ? inside : [inside]));
  return node;
}
