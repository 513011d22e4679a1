// The field at the foot: what is typed is sent with Enter; while an answer is made, the button stops it.
import { byId } from './dom.js';

export class Composer {
  /** act: {send(text), stop(), editLast()} */
  constructor(act) {
    this.act = act;
    this.form = byId('composer');
    this.field = byId('composer-text');
    this.button = byId('send');
    this.speaking = false;
    this.form.addEventListener('submit', (event) => { event.preventDefault(); this.#submit(); });
    this.field.addEventListener('keydown', (event) => this.#key(event));
    this.field.addEventListener('input', () => this.fit());
  }

  /** speaking: the button stops; ready: the model can be asked. */
  show({ speaking, ready, hint }) {
    Object.assign(this, { speaking, ready });
    this.button.textContent = speaking ? 'Stop' : 'Send';
    this.button.classList.toggle('stop', speaking);
    this.button.disabled = !speaking && !ready;
    this.field.placeholder = hint;
  }

  focus() {
    this.field.focus();
  }

  /** As tall as its text; browsers that know field-sizing do it themselves. */
  fit() {
    if (CSS.supports('field-sizing', 'content')) return;
    this.field.style.setProperty('height', 'auto');
    this.field.style.setProperty('height', `${this.field.scrollHeight}px`);
  }

  #submit() {
    if (this.speaking) return this.act.stop();
    const text = this.field.value.trim();
    if (!text || !this.ready) return;
    this.field.value = '';
    this.fit();
    this.act.send(text);
  }

  #key(event) {
    const touch = matchMedia('(pointer: coarse)').matches; // there Enter is a line break, the button sends
    if (event.key === 'Enter' && !event.shiftKey && !event.isComposing && !touch) {
      event.preventDefault();
      if (!this.speaking) this.#submit();
    } else if (event.key === 'ArrowUp' && !this.field.value) {
      event.preventDefault();
      this.act.editLast();
    }
  }
}
