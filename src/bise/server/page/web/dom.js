// Elements without markup: nothing on this page is ever parsed as HTML.

/** el('button', {class: 'quiet', onclick: f, hidden: true}, 'text', node): strings become text nodes. */
export function el(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === 'function') node.addEventListener(key.slice(2), value);
    else if (value === true) node.setAttribute(key, '');
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(key, value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export const byId = (id) => document.getElementById(id);

/** A button that is a word. */
export const word = (label, onclick, attributes = {}) =>
  el('button', { type: 'button', class: 'quiet', onclick, ...attributes }, label);

export const number = (n) => Math.round(n).toLocaleString('en');

export function percent(p) {
  if (p >= 0.9995) return '100 %';
  if (p >= 0.1) return `${(p * 100).toFixed(0)} %`;
  if (p >= 0.001) return `${(p * 100).toFixed(1)} %`;
  return '< 0.1 %';
}

export function seconds(s) {
  if (s < 0.0995) return `${Math.max(1, Math.round(s * 1000))} ms`;
  return s < 9.95 ? `${s.toFixed(1)} s` : `${Math.round(s)} s`;
}

/** A field as tall as its text; browsers that know field-sizing do it themselves. */
export function fit(area) {
  if (CSS.supports('field-sizing', 'content')) return;
  area.style.setProperty('height', 'auto');
  area.style.setProperty('height', `${area.scrollHeight}px`);
}

let hiding = 0;

/** One line at the foot of the page; with an action (label, function) it can be answered. */
export function notice(line, label = '', action = null) {
  const box = byId('notice');
  const act = () => { box.replaceChildren(); action(); };
  box.replaceChildren(el('span', {}, line), ...(label ? [word(label, act)] : []));
  clearTimeout(hiding);
  hiding = setTimeout(() => box.replaceChildren(), label ? 10000 : 5000);
}

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // not a secure context: http from another machine
    const area = el('textarea', { class: 'offstage', readonly: true });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand('copy');
    area.remove();
  }
}

/** A file that the browser saves: built here, so that no link ever carries a key. */
export function save(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: 'application/json' }));
  const link = el('a', { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
