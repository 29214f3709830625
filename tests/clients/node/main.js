// Uses Google's Node.js client against the emulator at PUBSUB_EMULATOR_HOST, and prints a report as
// JSON, like `../go/main.go`. The argument is the name of the topic and of the subscription.
// `tests/sdk/test_clients.py` runs the program and checks the report.

import { PubSub } from "@google-cloud/pubsub";

const FILTER = 'attributes.to = "me"';
const KEY = "a-key";
const TIMEOUT = 30_000; // milliseconds

// The published numbers: the even ones pass the filter.
const BATCHES = [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [10, 11]];

// Publishes numbers with one ordering key, and waits until the emulator accepted them.
async function publish(topic, numbers) {
  const messages = numbers.map((number) => ({
    data: Buffer.from(String(number)),
    attributes: { to: ["me", "you"][number % 2] },
    orderingKey: KEY,
  }));
  await Promise.all(messages.map((message) => topic.publishMessage(message)));
}

// Receives by a streaming pull until `count` messages are acknowledged.
async function receive(client, name, count, report) {
  const subscription = client.subscription(name);
  await new Promise((resolve, reject) => {
    subscription.on("error", reject);
    subscription.on("message", (message) => {
      report.received.push(message.data.toString());
      if (!report.keys.includes(message.orderingKey)) report.keys.push(message.orderingKey);
      message.ack();
      if (--count === 0) resolve();
    });
  });
  // Sends the acknowledgements that are still in its batch.
  await subscription.close();
}

// Those of the names that the project lists.
async function listed(client, names) {
  const [topics] = await client.getTopics();
  const [subscriptions] = await client.getSubscriptions();
  const all = [...topics, ...subscriptions].map(({ name }) => name);
  return all.filter((name) => names.includes(name));
}

// The names of the topic's subscriptions.
async function attached(topic) {
  const [subscriptions] = await topic.getSubscriptions();
  return subscriptions.map(({ name }) => name);
}

async function run(client, name) {
  const [topic] = await client.createTopic(name);
  const options = { filter: FILTER, enableMessageOrdering: true };
  const [subscription, created] = await topic.createSubscription(name, options);
  const report = { filter: created.filter, received: [], keys: [] };

  // Messages of an ordering key are delivered only after the earlier ones were acknowledged. So the
  // second batch arrives alone only if the emulator received all acknowledgements of the first.
  const publisher = client.topic(name, { messageOrdering: true });
  for (const numbers of BATCHES) {
    await publish(publisher, numbers);
    await receive(client, name, numbers.length / 2, report);
  }

  const names = [topic.name, subscription.name];
  report.listed = await listed(client, names);
  report.attached = await attached(topic);
  await client.detachSubscription(name);
  [report.detached] = await subscription.detached();
  report.attached_afterward = await attached(topic);

  await subscription.delete();
  await topic.delete();
  report.listed_afterward = await listed(client, names);
  return report;
}

if (process.argv.length !== 3) {
  console.error("usage: node main.js NAME");
  process.exit(2);
}
setTimeout(() => {
  console.error(`not finished within ${TIMEOUT} ms`);
  process.exit(1);
}, TIMEOUT).unref();
const client = new PubSub({ projectId: process.env.GOOGLE_CLOUD_PROJECT });
console.log(JSON.stringify(await run(client, process.argv[2])));
await client.close();
