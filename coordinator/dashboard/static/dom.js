/**
 * Nodes are made once and changed only where a value changed: one update a second stays cheap.
 * Values reach the page as text nodes and attributes, never as markup.
 */

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element; `on` maps events to listeners, children are nodes or texts. */
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same in SVG. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(node, { on = {}, ...attributes }, children) {
  for (const [name, value] of Object.entries(attributes)) setAttr(node, name, value);
  for (const [event, listener] of Object.entries(on)) node.addEventListener(event, listener);
  node.append(...children.filter((child) => child !== null));
  return node;
}

/** A string, or null and false to take the attribute away. */
export function setAttr(node, name, value) {
  if (value === null || value === undefined || value === false) {
    if (node.hasAttribute(name)) node.removeAttribute(name);
    return;
  }
  const text = value === true ? "" : String(value);
  if (node.getAttribute(name) !== text) node.setAttribute(name, text);
}

export function setText(node, text) {
  const only = node.firstChild;
  if (only !== null && only === node.lastChild && only.nodeType === Node.TEXT_NODE) {
    if (only.data !== text) only.data = text;
  } else if (node.textContent !== text) {
    node.textContent = text;
  }
}

export function setClass(node, name, isOn) {
  if (node.classList.contains(name) !== isOn) node.classList.toggle(name, isOn);
}

/** A share of the parent's width, by CSSOM: the security policy forbids style attributes. */
export function setWidth(node, share) {
  const text = `${(Math.max(0, Math.min(1, share || 0)) * 100).toFixed(2)}%`;
  if (node.style.width !== text) node.style.width = text;
}

export function setLeft(node, share) {
  const text = `${(Math.max(0, Math.min(1, share || 0)) * 100).toFixed(2)}%`;
  if (node.style.left !== text) node.style.left = text;
}

export const byId = (id) => document.getElementById(id);

/**
 * Children of a parent that follow a list: `make(item)` once for a new key, `update(node, item)`
 * each time; nodes move only where the order changed. The focus stays where it is.
 */
export class Keyed {
  constructor(parent, keyOf, make, update) {
    this.parent = parent;
    this.keyOf = keyOf;
    this.make = make;
    this.change = update;
    this.nodes = new Map();
  }

  update(items) {
    const unused = new Set(this.nodes.keys());
    let place = this.parent.firstElementChild;
    for (const item of items) {
      const key = this.keyOf(item);
      unused.delete(key);
      let node = this.nodes.get(key);
      if (node === undefined) {
        node = this.make(item);
        this.nodes.set(key, node);
      }
      this.change(node, item);
      if (node === place) place = place.nextElementSibling;
      else this.parent.insertBefore(node, place);
    }
    for (const key of unused) {
      this.nodes.get(key).remove();
      this.nodes.delete(key);
    }
  }
}

/** Parts of a cloned <template>, by their data-part. */
export function stamp(templateId) {
  const root = byId(templateId).content.firstElementChild.cloneNode(true);
  const parts = {};
  if (root.dataset.part) parts[root.dataset.part] = root;
  for (const node of root.querySelectorAll("[data-part]")) parts[node.dataset.part] = node;
  root.parts = parts;
  return root;
}

/** An icon of the sprite in index.html. */
export function icon(name, className = "icon") {
  return svg(
    "svg",
    { class: className, "aria-hidden": "true" },
    svg("use", { href: `#i-${name}` }),
  );
}

export function setIcon(node, name) {
  setAttr(node.querySelector("use"), "href", `#i-${name}`);
}
