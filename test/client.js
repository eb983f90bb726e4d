"use strict";
// One MQTT.js client, the engine of MQTTX and MQTTBox, on a string:
//
//   node client.js OPTIONS     the options of mqtt.connect() as JSON
//
// stdin has a command a line, ["publish", topic, payload, options], see
// commands; stdout an event a line, {"event": "message", ...}. An event of the
// same name answers a command. "end" or the end of stdin ends the program.

const readline = require("readline");
const mqtt = require("../build/node_modules/mqtt");

const client = mqtt.connect(JSON.parse(process.argv[2]));

// Bytes become text, as nothing here sends anything else.
function plain(key, value) {
	return value && value.type === "Buffer" ? Buffer.from(value.data).toString() : value;
}

function say(event, fields) {
	process.stdout.write(JSON.stringify({ event, ...fields }, plain) + "\n");
}

// The last argument of every function of MQTT.js: says how it went.
function answer(event) {
	return (error, result) => say(event, error ? { error: error.message, code: error.code } : { result });
}

const commands = {
	subscribe: (filter, options = {}) => client.subscribe(filter, options, answer("subscribe")),
	unsubscribe: (filter) => client.unsubscribe(filter, answer("unsubscribe")),
	publish: (topic, payload, options = {}) => client.publish(topic, payload, options, answer("publish")),
	// n messages at once, payloads 0 to n - 1; one answer when all are acknowledged
	flood: (topic, n, options) => {
		let left = n;
		for (let i = 0; i < n; i++)
			client.publish(topic, String(i), options, () => --left || say("flood"));
	},
	end: () => client.end(false, {}, () => input.close()),
	// the connection is gone, without DISCONNECT
	cut: () => client.stream.destroy(),
};

client.on("connect", (packet) => say("connect", packet));
client.on("message", (topic, payload, packet) => say("message", {
	topic,
	payload: payload.toString(),
	qos: packet.qos,
	retain: packet.retain,
	properties: packet.properties,
}));
client.on("disconnect", (packet) => say("disconnect", packet));
client.on("close", () => say("close"));
client.on("error", (error) => say("error", { error: error.message, code: error.code }));

const input = readline.createInterface({ input: process.stdin });
input.on("line", (line) => {
	const [verb, ...args] = JSON.parse(line);
	commands[verb](...args);
});
input.on("close", () => client.end(true));
